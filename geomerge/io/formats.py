"""File formats, recognised by their first bytes, with remedies for those without weights."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from geomerge.errors import CheckpointError

__all__ = ["format_of", "refuse_other_format"]

_UNPACK = "unpack it and name a file in it"
_GIVE_TORCH = "give the PyTorch weights that it was made from"


class _Format(NamedTuple):
    """Format that is not read, in words, with the remedy."""

    said: str
    remedy: str
    told: Callable[[bytes], bool]


def _starts(*marks: bytes, at: int = 0) -> Callable[[bytes], bool]:
    return lambda content: content[at : at + 32].startswith(marks)


def _text(*marks: bytes) -> Callable[[bytes], bool]:
    return lambda content: content[:256].lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith(marks)


def _zip_with(*names: str) -> Callable[[bytes], bool]:
    """Return a test for a zip that has an entry whose path ends in one of some names."""

    def told(content: bytes) -> bool:
        return content[:2] == b"PK" and any(
            re.search(f"(^|/)({'|'.join(names)})$", entry) for entry in _entries(content)
        )

    return told


def _entries(content: bytes) -> Sequence[str]:
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            return archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return []


def _is_text(start: bytes) -> bool:
    try:
        text = start.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return all(letter.isprintable() or letter in "\n\r\t" for letter in text)


def _onnx(content: bytes) -> bool:
    """Return whether bytes begin as ONNX's protocol buffer does: a version, then a producer."""
    return content[:1] == b"\x08" and content[2:3] in (b"\x12", b"\x3a") and content[1] < 32


_OTHERS = (
    _Format("empty", "copy it again", lambda content: not content),
    _Format(
        "a git-lfs pointer, which only says where the file is", "fetch it with git lfs pull",
        _starts(b"version https://git-lfs"),
    ),
    _Format(
        "a web page", "download the file itself, not the page that shows it",
        _text(b"<!doctype html", b"<html", b"<?xml"),
    ),
    _Format(
        "a TorchScript archive", "save the state_dict() of the module that it was made from",
        _zip_with(r"constants\.pkl", r"code/__torch__\.py"),
   ),
    _Format(
        "an exported program of torch.export",
        "save the state_dict() of the module that it was made from",
        _zip_with(r"serialized_exported_program\.json", r"archive_format", r"models/model\.json"),
    ),
    _Format("a Keras model", _GIVE_TORCH, _zip_with(r"model\.weights\.h5")),
    _Format("an HDF5 file, as Keras writes them", _GIVE_TORCH, _starts(b"\x89HDF\r\n")),
    _Format("a GGUF file, whose weights are quantised", _GIVE_TORCH, _starts(b"GGUF")),
    _Format("a GGML file, whose weights are quantised", _GIVE_TORCH, _starts(b"ggml", b"lmgg")),
    _Format("a TensorFlow Lite model", _GIVE_TORCH, _starts(b"TFL3", at=4)),
    _Format("an ONNX model", _GIVE_TORCH, _onnx),
    _Format("a packed file", _UNPACK, _starts(
        b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd", b"7z\xbc\xaf", b"Rar!",
    )),
    _Format("a tar archive", _UNPACK, _starts(b"ustar", at=257)),
    _Format("a single array of NumPy", "save all weights with torch.save", _starts(b"\x93NUMPY")),
    _Format("a Parquet table", "name a file of weights", _starts(b"PAR1")),
    _Format("an image", "name a file of weights", _starts(b"\x89PNG", b"\xff\xd8\xff")),
    _Format("a PDF", "name a file of weights", _starts(b"%PDF")),
    _Format("a JSON text", "name the file of the weights that it describes", _text(b"{", b"[")),
)  # fmt: skip
_SAFETENSORS_HEADER = re.compile(rb"\{\s*[\"}]")


def format_of(content: bytes) -> str:
    """Return the format of weights that bytes are of, by their beginning.

    Args:
        content: The whole file.

    Returns:
        ``"safetensors"``, ``"torch"`` (an archive of torch.save), ``"pickle"`` (its older form, or
        a pickle alone), ``"npz"`` or ``"unknown"``.
    """
    if _SAFETENSORS_HEADER.match(content[8:32]) and content[:1] not in (b"{", b"["):
        return "safetensors"
    if content[:2] == b"PK":
        names = _entries(content)
        return "npz" if names and all(n.endswith(".npy") for n in names) else "torch"
    if content[:1] == b"\x80" or content[:2] in (b"(d", b"}q"):
        return "pickle"
    return "unknown"


def refuse_other_format(content: bytes, path: Path) -> None:
    """Refuse bytes that are no file of weights that is read.

    Args:
        content: The whole file.
        path: Name of the file, for messages.

    Raises:
        CheckpointError: If they are of another format.
    """
    for one in _OTHERS:
        if one.told(content):
            raise CheckpointError(f"{path} is {one.said}, expected a state dict; {one.remedy}")
    if format_of(content) == "unknown" and _is_text(content[:256]):
        raise CheckpointError(
            f"{path} is a text, expected a file of weights; check that it is the right file"
        )
    if content[:2] == b"PK" and format_of(content) == "torch":
        names = _entries(content)
        if names and not any(name.endswith("/data.pkl") for name in names):
            raise CheckpointError(
                f"{path} is a zip of other files ({names[0][:40]!r}, ...), expected a state dict; "
                f"{_UNPACK}"
            )
