"""What a merge would need and what it would cost, before any of it is done."""

from geomerge.checking.check import Check, check_merge

__all__ = ["Check", "check_merge"]
