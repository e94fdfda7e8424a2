"""Options of reading files, and checkpoints read by them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from geomerge.io.checkpoint import Checkpoint, load_checkpoint
from geomerge.options import check_options, option

__all__ = ["FileOptions", "read_network"]


@dataclass(frozen=True)
class FileOptions:
    """Options of reading files of networks."""

    weights_key: str | None = option(
        None,
        "key of the state dict in a file that holds several, such as model_ema; keys of the parts "
        "of one network with commas between them, such as encoder,head",
        group="data", recorded="given",
    )  # fmt: skip
    leave_out: tuple[str, ...] = option(
        (), "tensors of a file that are left out, such as 'aux.*'", group="data", recorded="given"
    )

    def __post_init__(self) -> None:
        """Refuse values that cannot be used."""
        check_options(self)


def read_network(path: str | Path, files: FileOptions) -> Checkpoint:
    """Read a network's file by options; see :func:`~geomerge.io.checkpoint.load_checkpoint`."""
    return load_checkpoint(path, weights_key=files.weights_key, leave_out=files.leave_out)
