"""Avalanche's checkpoints, with their fault worked round and written whole or not at all.

They are pickles: load only those that you have written yourself.
"""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import avalanche.checkpointing
import dill

from geomerge.io.files import write_bytes

__all__ = ["maybe_load_checkpoint", "save_checkpoint"]

maybe_load_checkpoint = avalanche.checkpointing.maybe_load_checkpoint


def save_checkpoint(strategy: Any, file: str | Path) -> None:
    """Save a strategy after an experience; a run that goes on from it has the same bits.

    Args:
        strategy: Any Avalanche strategy.
        file: Where to.
    """
    # torch deletes the submodules that its optimisers' classes come from, so dill takes them for
    # classes that cannot be imported and fails to store them by value (avalanche-lib 0.6.0).
    before = dill.settings["byref"]
    dill.settings["byref"] = True
    buffer = io.BytesIO()
    try:
        with warnings.catch_warnings():  # it warns of those classes, and finds them when it loads
            warnings.simplefilter("ignore", dill.PicklingWarning)
            avalanche.checkpointing.save_checkpoint(strategy, buffer)
    finally:
        dill.settings["byref"] = before
    write_bytes(Path(file), buffer.getvalue())
