"""Process group of one computation: collectives, shares of the work, the writer of files.

All processes run the same program on the same networks, options and seeds (SPMD). Inside of
:func:`together` they share passes over inputs, gradients, decompositions and evaluation, and hold
the same weights at every step; the first process alone writes files. With one process, and outside
of the block, nothing is shared and nothing here does anything.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta
from importlib.metadata import version
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from geomerge.errors import OptionError, ProcessError, first_line

__all__ = [
    "Team",
    "agree",
    "alone",
    "first",
    "first_text",
    "of_group",
    "start",
    "team",
    "together",
    "wait",
    "writes",
]

_BUFFER = 25 * 2**20  # bytes of one reduction at most
_TIMEOUT = timedelta(minutes=30)  # for a process that is slow; one that ended is noticed at once


class Team:
    """Processes that compute one result.

    Args:
        group: Process group of torch.

    Attributes:
        group: The process group.
        rank: Number of this process, from 0.
        size: Number of processes.
    """

    def __init__(self, group: Any) -> None:
        self.group = group
        self.rank = dist.get_rank(group)
        self.size = dist.get_world_size(group)

    def owns(self, number: int) -> bool:
        """Whether this process does the piece of work of a number; pieces are dealt in turns."""
        return number % self.size == self.rank

    def share(self, count: int) -> slice:
        """Return this process's share of a row of examples."""
        return slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def owners(self, costs: Sequence[float]) -> list[int]:
        """Return the process of each piece of work, the costliest dealt first, each to the idlest.

        Args:
            costs: Cost of each piece.
        """
        load = [0.0] * self.size
        found = [0] * len(costs)
        for piece in sorted(range(len(costs)), key=lambda k: (-costs[k], k)):
            found[piece] = load.index(min(load))
            load[found[piece]] += costs[piece]
        return found

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors, of one shape in all processes, by their sums over the processes."""
        for start, stop in _buckets(tensors):
            parts = tensors[start:stop]
            if len(parts) == 1 and parts[0].is_contiguous():
                self._call(dist.all_reduce, parts[0])
                continue
            flat = torch.cat([part.reshape(-1) for part in parts])
            self._call(dist.all_reduce, flat)
            for part, total in zip(parts, flat.split([p.numel() for p in parts]), strict=True):
                part.copy_(total.view_as(part))

    def send(self, tensor: Tensor, owner: int) -> None:
        """Overwrite a contiguous tensor, of one shape in all processes, by its owner's."""
        self._call(dist.broadcast, tensor, dist.get_global_rank(self.group, owner))

    def collect(self, tensor: Tensor, owner: int) -> None:
        """Add a contiguous tensor, of one shape in all processes, up in its owner's alone.

        The others' is undefined afterwards.
        """
        self._call(dist.reduce, tensor, dist.get_global_rank(self.group, owner))

    def put_together(self, tensor: Tensor, owner: int) -> Tensor | None:
        """Return the rows of all processes, as many in each, to their owner; None to others."""
        own = tensor.contiguous()
        parts = [torch.empty_like(own) for _ in range(self.size)] if self.rank == owner else None
        self._call(dist.gather, own, parts, dist.get_global_rank(self.group, owner))
        return None if parts is None else torch.cat(parts)

    def all_rows(
        self,
        tensor: Tensor,  # (r, ...)
    ) -> Tensor:  # (size * r, ...)
        """Return the rows of all processes, as many in each."""
        parts = [torch.empty_like(tensor) for _ in range(self.size)]
        self._call(dist.all_gather, parts, tensor.contiguous())
        return torch.cat(parts)

    def exchange(
        self,
        tensor: Tensor,  # (sum of given,), contiguous
        given: list[int],
        taken: list[int],
    ) -> Tensor:  # (sum of taken,)
        """Give each process its part of a vector, and return the parts that each has for this one.

        Args:
            tensor: Parts for the processes, by their numbers.
            given: Length of each of them.
            taken: Length of each of the parts that come back.
        """
        found = tensor.new_empty(sum(taken))
        self._call(dist.all_to_all_single, found, tensor, taken, given)
        return found

    def tell(self, text: str, device: torch.device | str = "cpu") -> str:
        """Return the text that the first process has.

        Args:
            text: Text of this process.
            device: Device of the backend's tensors.
        """
        content = torch.frombuffer(bytearray(text.encode() or b"\0"), dtype=torch.uint8).to(device)
        length = torch.tensor([len(content)], device=device)
        self.send(length, 0)
        if self.rank:
            content = torch.zeros(int(length), dtype=torch.uint8, device=device)
        self.send(content, 0)
        return content.cpu().numpy().tobytes().decode().rstrip("\0")

    def wait(self) -> None:
        """Wait until every process is here."""
        self._call(dist.barrier)

    def _call(self, collective: Callable[..., Any], *given: Any) -> None:
        try:
            collective(*given, group=self.group)
        except RuntimeError as error:
            raise _ended(error) from error


def of_group(error: BaseException) -> bool:
    """Return whether an error is of a collective, as when another process has ended."""
    return isinstance(error, dist.DistError) or "gloo" in str(error).lower()


def _ended(error: RuntimeError) -> ProcessError:
    return ProcessError(
        "one of the processes that compute together has ended or does not answer "
        f"({first_line(error)}); look at its own message and start all of them again"
    )


def _buckets(tensors: Sequence[Tensor]) -> Iterator[tuple[int, int]]:
    """Yield runs of tensors of one type whose bytes fit into one reduction, at least one each."""
    start, held = 0, 0
    for k, tensor in enumerate(tensors):
        other = k > start and tensor.dtype != tensors[start].dtype
        if k > start and (other or held + tensor.nbytes > _BUFFER):
            yield start, k
            start, held = k, 0
        held += tensor.nbytes
    if tensors:
        yield start, len(tensors)


_team: ContextVar[Team | None] = ContextVar("team", default=None)


def team() -> Team | None:
    """Return the processes that share this computation; None where it is one process's."""
    return _team.get()


def agree(on: str, own: str, weights: Iterable[Tensor] = ()) -> None:
    """Refuse processes that would share a computation and were given different ones.

    Args:
        on: Name of the objects that have to be the same, a noun phrase.
        own: Text of this process's objects.
        weights: Weights of this process's networks, compared by the sum of their sizes.

    Raises:
        OptionError: In every process, if one of them has something else.
    """
    mates = _team.get()
    if mates is None:
        return
    sums = [float(w.double().abs().sum()) for w in weights]
    if _compared(mates, f"{own} {sums}")[1]:
        raise OptionError(
            f"the processes that compute together have different {on}; give all of them the same"
        )


def _compared(mates: Team, own: str) -> tuple[str, int]:
    """Return the first process's text, and the number of processes with another one."""
    theirs = mates.tell(own)
    differs = torch.tensor([float(own != theirs)])
    mates.add([differs])
    return theirs, int(differs)


def writes() -> bool:
    """Whether this process writes the files of the computation."""
    mates = _team.get()
    return mates is None or mates.rank == 0


def wait() -> None:
    """Wait for all processes: before what the first wrote is read, and before it is removed."""
    mates = _team.get()
    if mates is not None:
        mates.wait()


def first_text(text: str) -> str:
    """Return the text that the first process has, such as the name of a folder."""
    mates = _team.get()
    return text if mates is None else mates.tell(text)


def first() -> bool:
    """Whether this is the first process of all, or the only one."""
    return (dist.get_rank() if _running() else int(os.environ.get("RANK", "0"))) == 0


def _running() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


@contextmanager
def together() -> Iterator[Team | None]:
    """Share the block's computation among the processes of torch's process group.

    The block must run in every process of the group. An error in one of them ends the block in all.

    Yields:
        The processes; None where there is no process group, or it has one process.

    Raises:
        OptionError: If the processes run different versions.
        ProcessError: If one of the processes ends.
    """
    if _team.get() is not None or not _running():
        yield _team.get()
        return
    group: Any = dist.new_group(timeout=_TIMEOUT)
    mates = Team(group)
    token = _team.set(None)
    try:
        _compare_versions(mates)
        _team.set(mates)
        yield mates
        mates.wait()
    except RuntimeError as error:  # of collectives inside of torch, as of sharded weights
        if of_group(error) and not isinstance(error, ProcessError):  # which says so already
            raise _ended(error) from error
        raise
    finally:  # without a group the others' next collective fails: none of them waits for ever
        _team.reset(token)
        dist.destroy_process_group(group)


@contextmanager
def alone() -> Iterator[None]:
    """Leave the other processes out of the block, which some of them may not run."""
    token = _team.set(None)
    try:
        yield
    finally:
        _team.reset(token)


def _compare_versions(mates: Team) -> None:
    own = f"geomerge {version('geomerge')} and torch {torch.__version__}"
    theirs, differs = _compared(mates, own)
    if own != theirs:
        raise OptionError(
            f"process {mates.rank} runs {own}, and process 0 {theirs}; install the same versions "
            "for all processes"
        )
    if differs:
        raise OptionError(
            f"process 0 runs {own}, and {differs} of the others another version; install the "
            "same versions for all processes"
        )


def start(device: str) -> None:
    """Join the process group that ``torchrun`` describes in the environment, if it started this.

    Args:
        device: Device that computes, as the options name it; ``"cuda"`` is another one for each
            process of a machine.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or "TORCHELASTIC_RUN_ID" not in os.environ:
        return
    if device == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    if not dist.is_initialized():
        dist.init_process_group("gloo" if device == "cpu" else "cpu:gloo,cuda:nccl")
