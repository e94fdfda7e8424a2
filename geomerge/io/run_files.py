"""Files of networks in the folders of finished runs."""

from __future__ import annotations

from pathlib import Path

from geomerge.errors import RunError
from geomerge.io.files import parse_json, plain_file

__all__ = ["last_configuration", "result_file"]

_RESULTS = ("merged.safetensors", "sparse.safetensors")  # of a merge, of a sparsification


def last_configuration(run: Path) -> Path:
    """Return the file of the network that a reconfiguration ended with.

    Args:
        run: Folder of the run.

    Raises:
        RunError: If the folder is not of a finished reconfiguration.
    """
    try:
        report = parse_json((run / "report.json").read_text(encoding="utf-8"))
        return plain_file(run, f"{report['configurations'][-1]['name']}.safetensors")
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise RunError(
            f"{run} is not the folder of a sparsify or reconfigure run; name such a folder or a "
            "network's file"
        ) from error


def result_file(run: Path) -> Path:
    """Return the file of a run's result.

    Args:
        run: Folder of a finished merge, sparsification or reconfiguration.

    Raises:
        RunError: If it has none.
    """
    result = next((run / name for name in _RESULTS if (run / name).is_file()), None)
    if result is not None:
        return result
    try:
        return last_configuration(run)
    except RunError as error:
        raise RunError(
            f"{run} holds no network of a finished merge, sparsify or reconfigure run, and no "
            "config.json as a folder of transformers; name such a folder, or a network's file"
        ) from error
