"""Merges of networks that no single device holds: weights, metric and steps over processes."""

from geomerge.sharded.merge import merge_sharded
from geomerge.sharded.options import ShardedOptions

__all__ = ["ShardedOptions", "merge_sharded"]
