"""Large tensors in files without a name, which take memory of the process only while they are used.

The system holds the pages of such a file and writes them to the disk where memory is short. The
process counts those that it touched since :func:`release`. The files lie where ``TMPDIR`` says and
go with their tensors. Forked children share them: what a child writes into such a tensor, its
parent reads.
"""

from __future__ import annotations

import ctypes
import math
import mmap
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from weakref import WeakValueDictionary

import torch
from torch import Tensor

__all__ = [
    "LEAST",
    "PART",
    "Store",
    "copied",
    "difference",
    "distance",
    "empty",
    "give_back",
    "has_room",
    "in_file",
    "in_parts",
    "lerp",
    "on_disk_of",
    "release",
    "stored",
    "trim",
]

LEAST = 2**26  # bytes from which a tensor lies in a file
PART = 2**20  # numbers of vectors that are computed with at a time

# The maps by the addresses of the tensors in them, of which one map may hold many.
_maps: WeakValueDictionary[int, mmap.mmap] = WeakValueDictionary()


def in_file(nbytes: int) -> bool:
    """Return whether a vector of so many bytes lies in a file, where there is room."""
    return nbytes >= LEAST and hasattr(os, "posix_fallocate")  # not on Windows and macOS


def has_room(nbytes: int) -> bool:
    """Return whether files of so many bytes find room on a disk, and not in memory as on a tmpfs.

    Args:
        nbytes: Bytes of all of them.
    """
    try:
        folder = tempfile.gettempdir()
        return not _in_memory(folder) and shutil.disk_usage(folder).free >= nbytes
    except OSError:  # no such folder, or no system that tells of its disk
        return False


def _in_memory(folder: str) -> bool:
    """Return whether files in a folder take memory."""
    device = os.stat(folder).st_dev
    name = f"{os.major(device)}:{os.minor(device)}"
    mounts = Path("/proc/self/mountinfo").read_text(errors="replace").splitlines()
    kinds = {mount.split()[2]: mount.partition(" - ")[2].split()[0] for mount in mounts}
    return kinds.get(name) in ("tmpfs", "ramfs")


def on_disk_of(folder: Path) -> bool:
    """Return whether files lie on the disk of a folder.

    Args:
        folder: The folder.
    """
    try:
        return os.stat(tempfile.gettempdir()).st_dev == folder.stat().st_dev
    except OSError:  # no folder for temporary files
        return False


def empty(
    size: int, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
) -> Tensor:  # (size,)
    """Return a vector without values, in a file where it is large and the system has room for it.

    Args:
        size: Number of its elements.
        dtype: Type.
        device: Device; only vectors on the CPU lie in files.
    """
    needed = size * dtype.itemsize
    if torch.device(device).type != "cpu" or not in_file(needed):
        return torch.empty(size, dtype=dtype, device=device)
    pages = _mapped(needed)
    if pages is None:
        return torch.empty(size, dtype=dtype, device=device)
    return _tensor_in(pages, 0, size, dtype)


def _mapped(nbytes: int) -> mmap.mmap | None:
    """Return the map of a new file, or None where the disk has no room for it."""
    try:
        with tempfile.TemporaryFile() as file:
            os.posix_fallocate(file.fileno(), 0, nbytes)  # a full disk is told now, not by a signal
            return mmap.mmap(file.fileno(), nbytes)
    except OSError:
        return None


def _tensor_in(pages: mmap.mmap, start: int, size: int, dtype: torch.dtype) -> Tensor:  # (size,)
    """Return a vector of a storage of its own in a map, since files are written by storages."""
    made = torch.frombuffer(pages, dtype=dtype, count=size, offset=start)  # holds the map
    _maps[made.data_ptr()] = pages
    return made


def release(*tensors: Tensor) -> None:
    """Give back the memory of tensors that lie in files; their values stay there.

    Args:
        tensors: Tensors, or views of parts. Those in ordinary memory are left as they are.
    """
    for tensor in tensors:
        if tensor.device.type != "cpu" or not tensor.numel():
            continue
        pages = _maps.get(tensor.untyped_storage().data_ptr())
        if pages is None or not tensor.is_contiguous():
            continue
        start = tensor.data_ptr() - ctypes.addressof(ctypes.c_char.from_buffer(pages))
        first = start // mmap.PAGESIZE * mmap.PAGESIZE
        last = start + tensor.nbytes
        pages.madvise(mmap.MADV_DONTNEED, first, last - first)  # the map is shared: nothing is lost


def give_back() -> None:
    """Give back the memory of all tensors in files, and what the C library kept of freed ones."""
    if _maps:
        for pages in set(_maps.values()):
            pages.madvise(mmap.MADV_DONTNEED)
        trim()


def trim() -> None:
    """Give back what the C library kept of freed tensors."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc alone
    if trim is not None:
        trim(0)


def in_parts(*vectors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield the parts of vectors of equal length one after the other, each released after its use.

    Args:
        vectors: Vectors.
    """
    for parts in zip(*(vector.split(PART) for vector in vectors), strict=True):
        yield parts
        release(*parts)


def copied(
    v: Tensor,  # (n,)
) -> Tensor:  # (n,)
    """Return a copy of a vector."""
    out = empty(len(v), v.dtype, v.device)
    for to, part in in_parts(out, v):
        to.copy_(part)
    return out


def difference(
    first: Tensor,  # (n,)
    second: Tensor,  # (n,)
) -> Tensor:  # (n,)
    """Return first - second."""
    out = empty(len(first), first.dtype, first.device)
    for to, p, q in in_parts(out, first, second):
        torch.sub(p, q, out=to)
    return out


def lerp(
    first: Tensor,  # (n,)
    last: Tensor,  # (n,)
    share: float,
) -> Tensor:  # (n,)
    """Return the point of a straight line at a share of it."""
    out = empty(len(first), first.dtype, first.device)
    for to, p, q in in_parts(out, first, last):
        torch.lerp(p, q, share, out=to)
    return out


def distance(
    first: Tensor,  # (n,)
    second: Tensor,  # (n,)
) -> float:
    """Return |first - second|."""
    norms = [float((p - q).norm()) for p, q in in_parts(first, second)]
    return math.sqrt(sum(norm**2 for norm in norms))


class Store:
    """Files for many tensors, such as the factors of a metric, several in one file.

    Args:
        total: Bytes of all tensors, about. Where these are few, tensors stay as they are.

    Attributes:
        used: Whether tensors are copied into files.
    """

    def __init__(self, total: int) -> None:
        self.used = in_file(total)
        self._pages: mmap.mmap | None = None
        self._taken = 0  # bytes of the current file

    def hold(self, tensor: Tensor) -> Tensor:
        """Return a copy of a tensor in a file; on another device, the tensor itself."""
        if not self.used or tensor.device.type != "cpu":
            return tensor
        if self._pages is None or self._taken + tensor.nbytes > len(self._pages):
            self._pages, self._taken = _mapped(max(tensor.nbytes, LEAST)), 0
            give_back()  # what was measured or read since the last time
        if self._pages is None or not tensor.numel():
            return tensor.clone(memory_format=torch.contiguous_format)
        held = _tensor_in(self._pages, self._taken, tensor.numel(), tensor.dtype)
        held = held.view(tensor.shape)
        self._taken += -(-tensor.nbytes // 64) * 64  # so that the next one begins at a multiple
        held.copy_(tensor)
        release(held)
        return held


def stored(tensors: Mapping[str, Tensor], total: int | None = None) -> dict[str, Tensor]:
    """Return named tensors, copied into files where they are large; tied ones stay one.

    Args:
        tensors: Tensors by name, on the CPU.
        total: Bytes by which they count as large; those of all by default.
    """
    store = Store(sum(tensor.nbytes for tensor in tensors.values()) if total is None else total)
    known: dict[tuple[int, torch.Size, tuple[int, ...]], Tensor] = {}
    found = {}
    for name, tensor in tensors.items():
        key = (tensor.data_ptr(), tensor.shape, tensor.stride())
        if key not in known or not tensor.numel():
            known[key] = store.hold(tensor.detach())
        found[name] = known[key]
    return found
