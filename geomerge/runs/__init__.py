"""Runs of the commands, each with a folder that is written whole or not at all."""

from geomerge.runs.merge import run_merge
from geomerge.runs.reconfigure import run_reconfigure
from geomerge.runs.sparsify import run_sparsify

__all__ = ["run_merge", "run_reconfigure", "run_sparsify"]
