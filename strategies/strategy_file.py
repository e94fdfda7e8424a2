"""Files of strategies: Avalanche's checkpoints, written atomically, one fault corrected.

They are pickles: load only those that you have written yourself.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dill

from geomerge.io.files import write_bytes
from geomerge.strategies.avalanche import maybe_load_checkpoint
from geomerge.strategies.avalanche import save_checkpoint as save_whole

__all__ = ["maybe_load_checkpoint", "save_checkpoint", "save_strategy"]


def save_strategy(strategy: Any, file: str | Path, exclude: Sequence[str] | None = None) -> None:
    """Save a strategy after an experience; a run that goes on from the file has the same bits.

    The order of arguments is that of Avalanche's own ``save_checkpoint``: the strategy first.

    Args:
        strategy: Any strategy of Avalanche.
        file: File to write.
        exclude: Names of attributes of the strategy that are not saved.
    """
    # torch deletes the submodules that its optimisers' classes come from, so dill takes them for
    # classes that cannot be imported and fails to store them by value (avalanche-lib 0.6.0).
    before = dill.settings["byref"]
    dill.settings["byref"] = True
    buffer = io.BytesIO()
    try:
        with warnings.catch_warnings():  # dill warns of those classes, and finds them on loading
            warnings.simplefilter("ignore", dill.PicklingWarning)
            save_whole(strategy, buffer, exclude)
    finally:
        dill.settings["byref"] = before
    write_bytes(Path(file), buffer.getvalue())


# Avalanche's own function of this name fails with present versions of torch.
save_checkpoint = save_strategy
