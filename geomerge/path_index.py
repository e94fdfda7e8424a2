"""The index of a stored path, checked before it leads to a file."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

from geomerge.reading import parse_json, plain_file

__all__ = ["read_index", "read_steps"]

_STOP = {"t", "file", "base"}
_LARGEST = 64 * 2**20  # bytes; a path of a thousand points has an index of a tenth of a megabyte


def read_index(file: Path) -> dict[str, Any]:
    """Return a path's index: its stops in order from t = 0 to t = 1, its ends and its lengths.

    Args:
        file: The index, in the folder of the points.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is no such index, or names a file outside of its folder.
    """
    index = parse_json(_text(file))
    if not isinstance(index, dict):
        raise ValueError("the index is no object")
    missing = {"stops", "ends", "crossover", "lengths", "meta"} - set(index)
    if missing:
        raise ValueError(f"the index has no {sorted(missing)[0]}")
    ends, stops = index["ends"], index["stops"]
    if not isinstance(ends, list) or len(ends) != 2 or not all(isinstance(e, str) for e in ends):
        raise ValueError("the index names no two ends")
    if not isinstance(index["meta"], dict) or not isinstance(index["lengths"], dict):
        raise ValueError("the index has no lengths or says nothing of the networks")
    if not isinstance(stops, list) or len(stops) < 2:
        raise ValueError("the index has no stops")
    for end in ends:
        plain_file(file.parent, f"{end}.safetensors")
    for stop in stops:
        if not isinstance(stop, dict) or set(stop) != _STOP or stop["base"] not in ends:
            raise ValueError("a stop of the index has no t, no file or no base")
        if stop["file"] is not None:
            plain_file(file.parent, stop["file"])
    numbers = [index["crossover"], *index["lengths"].values(), *(stop["t"] for stop in stops)]
    if not all(type(x) in (int, float) and math.isfinite(x) and x >= 0 for x in numbers):
        raise ValueError("a t or a length of the index is no number from 0 on")
    ts = [stop["t"] for stop in stops]
    if ts[0] != 0 or ts[-1] != 1 or any(b <= a for a, b in pairwise(ts)) or index["crossover"] > 1:
        raise ValueError("the stops of the index do not rise from 0 to 1")
    return index


def read_steps(file: Path) -> list[dict[str, Any]]:
    """Return the records of a path's steps, one for each line.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If a line is no object.
    """
    records = [parse_json(line) for line in _text(file).splitlines()]
    if not all(isinstance(record, dict) for record in records):
        raise ValueError("a step is no object")
    return records


def _text(file: Path) -> str:
    file = plain_file(file.parent, file.name)
    if not file.is_file():
        raise ValueError(f"no file {file.name}")
    if file.stat().st_size > _LARGEST:
        raise ValueError(f"{file.name} of {file.stat().st_size} bytes")
    return file.read_text(encoding="utf-8")
