"""Named streams of tasks as benchmarks of Avalanche: training, selection and test examples."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from avalanche.benchmarks import GenericCLScenario
from torch import Tensor

from geomerge.data import Inputs, Split, Task, load_task
from geomerge.runs.stream_options import StreamOptions
from geomerge.strategies.examples import Examples, Pool

__all__ = ["PROTOCOLS", "Stream", "make_stream"]

PROTOCOLS = {
    "class": "one output for each of all classes; the task is not known (class-incremental)",
    "domain": "the same outputs for every task; the task is not known (domain-incremental)",
    "task": "outputs of its own for each task; the task is known (task-incremental)",
}
_HALF_TURN = 180.0
_ROTATED = 5000  # images turned at a time


@dataclass(frozen=True)
class Stream:
    """Experiences with their examples.

    Attributes:
        benchmark: For Avalanche: ``train_stream``, ``valid_stream`` and ``test_stream``.
        select: Of each experience, for choices.
        test: Of each experience, for the numbers that are reported.
        names: Of the experiences.
        outputs: Of the network, or of each of its heads.
        heads: Whether each experience has outputs of its own.
        shape: Of one input.
    """

    benchmark: Any
    select: list[Examples]
    test: list[Examples]
    names: list[str]
    outputs: int
    heads: bool
    shape: tuple[int, ...]

    def __len__(self) -> int:
        """Return the number of experiences."""
        return len(self.names)


@dataclass(frozen=True)
class _Experience:
    name: str
    splits: tuple[Examples, Examples, Examples]  # train, select, test
    outputs: int


def make_stream(options: StreamOptions) -> Stream:
    """Load a stream's data and make its experiences.

    Args:
        options: Its name, number of experiences, scenario and seed.

    Raises:
        TaskError: If data is missing or damaged.
    """
    tasks = [
        load_task(name, data_root=options.data_root, download=options.download)
        for name in options.kind.tasks
    ]
    make = {
        "permuted": _permuted,
        "rotated": _rotated,
        "split": _split,
        "datasets": _as_they_are,
    }[options.kind.kind]
    experiences = make(tasks, options)
    pools = [Pool([e.splits[i] for e in experiences]) for i in range(3)]
    # dataset_benchmark would wrap each data set in one of its own, which reads example by example.
    streams = {
        name: ([pool.experience(k) for k in range(len(experiences))],)
        for name, pool in zip(("train", "valid", "test"), pools, strict=True)
    }
    return Stream(
        GenericCLScenario(stream_definitions=streams),
        list(pools[1].parts),
        list(pools[2].parts),
        [e.name for e in experiences],
        max(e.outputs for e in experiences),
        options.protocol == "task",
        tasks[0].input_shape,
    )


def _permuted(tasks: list[Task], options: StreamOptions) -> list[_Experience]:
    """Every experience has the numbers of its inputs in an order of its own."""
    (task,) = tasks
    generator = torch.Generator().manual_seed(options.seed)
    size = torch.Size(task.input_shape).numel()
    orders = [torch.randperm(size, generator=generator) for _ in range(options.count)]
    return [
        _experience(f"permutation {k}", task, lambda s, o=order: _examples(s, permutation=o))
        for k, order in enumerate(orders, start=1)
    ]


def _rotated(tasks: list[Task], options: StreamOptions) -> list[_Experience]:
    """From no turn to half a turn, in equal steps."""
    (task,) = tasks
    angles = [k * _HALF_TURN / (options.count - 1) for k in range(options.count)]
    return [
        _experience(f"{a:.3g} degrees", task, lambda s, a=a: _examples(_turned(s, a)))
        for a in angles
    ]


def _split(tasks: list[Task], options: StreamOptions) -> list[_Experience]:
    """Each experience has classes that no other has, drawn by the seed."""
    (task,) = tasks
    order = torch.randperm(task.classes, generator=torch.Generator().manual_seed(options.seed))
    found = []
    for k, classes in enumerate(order.chunk(options.count)):
        numbers = torch.full((task.classes,), -1)
        own = options.protocol != "class"
        numbers[classes] = torch.arange(len(classes)) if own else classes
        label = k if options.protocol == "task" else 0
        name = "classes " + " ".join(str(c) for c in classes.tolist())
        one = _experience(name, task, lambda s, n=numbers, t=label: _examples(_part(s, n), t))
        found.append(replace(one, outputs=len(classes) if own else task.classes))
    return found


def _as_they_are(tasks: list[Task], _: StreamOptions) -> list[_Experience]:
    """Each experience is a task, class k of every task the same output."""
    return [_experience(task.name, task, _examples) for task in tasks]


def _experience(name: str, task: Task, examples: Any) -> _Experience:
    return _Experience(
        name, tuple(examples(s) for s in (task.train, task.select, task.test)), task.classes
    )


def _examples(split: Split, task: int = 0, permutation: Tensor | None = None) -> Examples:
    return Examples(split.inputs, split.labels, task, permutation)


def _part(split: Split, numbers: Tensor) -> Split:
    """Return the examples of classes with a number, under it."""
    labels = numbers[split.labels]
    kept = labels >= 0
    return Split(split.inputs.take(kept), labels[kept])


def _turned(split: Split, angle: float) -> Split:
    """Return images turned by so many degrees, in bytes as they came: a quarter of the memory."""
    from torchvision.transforms.functional import InterpolationMode, rotate

    raw = split.inputs.raw
    assert isinstance(raw, Tensor), "images are one tensor"
    if angle == 0:
        return split
    turned = torch.cat([rotate(x, angle, InterpolationMode.BILINEAR) for x in raw.split(_ROTATED)])
    return Split(Inputs(turned, split.inputs.normalisation, split.inputs.device), split.labels)
