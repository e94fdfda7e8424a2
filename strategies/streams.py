"""Streams of tasks as benchmarks of Avalanche: training, selection and test examples."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from geomerge.data import Inputs, Split, Task, as_they_are, load_task
from geomerge.errors import OptionError
from geomerge.strategies.avalanche import GenericCLScenario
from geomerge.strategies.examples import Examples, Pool
from geomerge.strategies.experience import collect, task_label
from geomerge.strategies.options import StreamOptions

__all__ = ["PROTOCOLS", "Stream", "make_stream", "stream_of"]

PROTOCOLS = {
    "class": "one output for each of all classes; the task is not known (class-incremental)",
    "domain": "the same outputs for every task; the task is not known (domain-incremental)",
    "task": "outputs of its own for each task; the task is known (task-incremental)",
}
_HALF_TURN = 180.0
_ROTATED = 5000  # images turned at a time
_SELECT = 10  # one of so many training examples selects, where a benchmark has no such stream


@dataclass(frozen=True)
class Stream:
    """Experiences with their examples.

    Attributes:
        name: Name of the stream.
        protocol: Protocol, one of :data:`PROTOCOLS`.
        benchmark: Benchmark of Avalanche: ``train_stream``, ``valid_stream`` and ``test_stream``.
        select: Examples of each experience for choices.
        test: Examples of each experience for the numbers that are reported.
        names: Names of the experiences.
        outputs: Number of outputs of the network, or of each of its heads.
        shape: Shape of one input.
    """

    name: str
    protocol: str
    benchmark: Any
    select: list[Examples]
    test: list[Examples]
    names: list[str]
    outputs: int
    shape: tuple[int, ...]

    def __len__(self) -> int:
        """Return the number of experiences."""
        return len(self.names)

    @property
    def heads(self) -> bool:
        """Whether each experience has outputs of its own."""
        return self.protocol == "task"


@dataclass(frozen=True)
class _Experience:
    name: str
    splits: tuple[Examples, Examples, Examples]  # train, select, test
    outputs: int


def make_stream(options: StreamOptions) -> Stream:
    """Load the data of a named stream and make its experiences.

    Args:
        options: Options with its name, number of experiences, scenario and seed.

    Raises:
        TaskError: If data is missing or damaged.
    """
    tasks = [
        load_task(name, data_root=options.data.data_root, download=options.data.download)
        for name in options.kind.tasks
    ]
    make = {
        "permuted": _permuted,
        "rotated": _rotated,
        "split": _split,
        "datasets": _datasets,
    }[options.kind.make]
    if options.per_class is not None:
        tasks = [_fewer(task, options.per_class) for task in tasks]
    experiences = make(tasks, options)
    return _stream(options.stream, options.protocol, experiences, tasks[0].input_shape)


def stream_of(benchmark: Any, name: str = "benchmark", seed: int = 0) -> Stream:
    """Return a benchmark of Avalanche as a stream whose examples are read a batch at a time.

    Args:
        benchmark: Benchmark with ``train_stream`` and ``test_stream`` of as many experiences. If it
            has a ``valid_stream``, that selects; else a tenth of the training examples does.
        name: Name of the stream.
        seed: Seed of the choice of that tenth.

    Raises:
        OptionError: If the streams are of different lengths, or an experience has several task
            labels.
    """
    train = [_collected(e) for e in benchmark.train_stream]
    test = [_collected(e) for e in benchmark.test_stream]
    valid = getattr(benchmark, "valid_stream", None)
    if valid:
        select = [_collected(e) for e in valid]
    else:
        parts = [_divided(examples, seed) for examples in train]
        train, select = [kept for kept, _ in parts], [cut for _, cut in parts]
    if not train or not len(train) == len(select) == len(test):
        raise OptionError(
            f"expected a benchmark with as many test as training experiences, got {len(test)} and "
            f"{len(train)}; give one test experience for each"
        )
    classes = [set(examples.labels.tolist()) for examples in train]
    outputs = 1 + max(max(labels) for labels in classes)
    if len({examples.task for examples in train}) > 1:
        protocol = "task"
    else:
        apart = sum(map(len, classes)) == len(set().union(*classes)) and len(classes) > 1
        protocol = "class" if apart else "domain"
    experiences = [
        _Experience(f"experience {k}", splits, outputs)
        for k, splits in enumerate(zip(train, select, test, strict=True), start=1)
    ]
    return _stream(name, protocol, experiences, train[0].inputs.shape)


def _stream(
    name: str, protocol: str, experiences: list[_Experience], shape: tuple[int, ...]
) -> Stream:
    pools = [Pool([e.splits[i] for e in experiences]) for i in range(3)]
    # dataset_benchmark would wrap each data set in one of its own, which reads example by example.
    streams = {
        kind: ([pool.experience(k) for k in range(len(experiences))],)
        for kind, pool in zip(("train", "valid", "test"), pools, strict=True)
    }
    return Stream(
        name,
        protocol,
        GenericCLScenario(stream_definitions=streams),
        list(pools[1].parts),
        list(pools[2].parts),
        [e.name for e in experiences],
        max(e.outputs for e in experiences),
        shape,
    )


def _collected(experience: Any) -> Examples:
    """Return all examples of an experience of Avalanche, transformed as for evaluation."""
    x, labels = collect(experience, None, 0)
    task = task_label(experience) if hasattr(experience, "task_labels") else 0
    return Examples(as_they_are(x), labels, task)


def _divided(examples: Examples, seed: int) -> tuple[Examples, Examples]:
    """Return examples for training and for selection."""
    order = torch.randperm(len(examples.labels), generator=torch.Generator().manual_seed(seed))
    cut = max(1, len(order) // _SELECT)
    train, select = (
        replace(examples, inputs=examples.inputs.take(rows), labels=examples.labels[rows])
        for rows in (order[cut:].sort().values, order[:cut].sort().values)
    )
    return train, select


def _fewer(task: Task, per_class: int) -> Task:
    """Return a task with the first training examples of each class."""
    labels = task.train.labels
    rows = [(labels == c).nonzero().flatten()[:per_class] for c in labels.unique()]
    kept = torch.cat(rows).sort().values
    return replace(task, train=Split(task.train.inputs.take(kept), labels[kept]))


def _permuted(tasks: list[Task], options: StreamOptions) -> list[_Experience]:
    """Return experiences with inputs in permuted orders, one for each."""
    (task,) = tasks
    generator = torch.Generator().manual_seed(options.seed)
    size = torch.Size(task.input_shape).numel()
    orders = [torch.randperm(size, generator=generator) for _ in range(options.count)]
    return [
        _experience(f"permutation {k}", task, lambda s, o=order: _examples(s, permutation=o))
        for k, order in enumerate(orders, start=1)
    ]


def _rotated(tasks: list[Task], options: StreamOptions) -> list[_Experience]:
    """Return experiences with inputs rotated from no turn to half a turn, in equal steps."""
    (task,) = tasks
    angles = [k * _HALF_TURN / (options.count - 1) for k in range(options.count)]
    return [
        _experience(f"{a:.3g} degrees", task, lambda s, a=a: _examples(_turned(s, a)))
        for a in angles
    ]


def _split(tasks: list[Task], options: StreamOptions) -> list[_Experience]:
    """Return experiences with disjoint classes, drawn by the seed."""
    (task,) = tasks
    order = torch.randperm(task.classes, generator=torch.Generator().manual_seed(options.seed))
    first = options.first_classes or task.classes // options.count
    each = (task.classes - first) // (options.count - 1)
    sizes = [first, *([each] * (options.count - 1))]
    experiences = []
    for k, classes in enumerate(order.split(sizes)):
        numbers = torch.full((task.classes,), -1)
        own = options.protocol != "class"
        numbers[classes] = torch.arange(len(classes)) if own else classes
        label = k if options.protocol == "task" else 0
        name = "classes " + " ".join(str(c) for c in classes.tolist())
        one = _experience(name, task, lambda s, n=numbers, t=label: _examples(_part(s, n), t))
        experiences.append(replace(one, outputs=len(classes) if own else task.classes))
    return experiences


def _datasets(tasks: list[Task], _: StreamOptions) -> list[_Experience]:
    """Return whole tasks as experiences; class k of every task is the same output."""
    return [_experience(task.name, task, _examples) for task in tasks]


def _experience(name: str, task: Task, examples: Any) -> _Experience:
    return _Experience(
        name, tuple(examples(s) for s in (task.train, task.select, task.test)), task.classes
    )


def _examples(split: Split, task: int = 0, permutation: Tensor | None = None) -> Examples:
    return Examples(split.inputs, split.labels, task, permutation)


def _part(split: Split, numbers: Tensor) -> Split:
    """Return the examples of the classes with a new number, with that as their label."""
    labels = numbers[split.labels]
    kept = labels >= 0
    return Split(split.inputs.take(kept), labels[kept])


def _turned(split: Split, angle: float) -> Split:
    """Return rotated images, angle in degrees, as bytes: a quarter of the memory of floats."""
    from torchvision.transforms.functional import InterpolationMode, rotate

    raw = split.inputs.raw
    assert isinstance(raw, Tensor), "images are one tensor"
    if angle == 0:
        return split
    turned = torch.cat([rotate(x, angle, InterpolationMode.BILINEAR) for x in raw.split(_ROTATED)])
    return Split(Inputs(turned, split.inputs.normalisation, split.inputs.device), split.labels)
