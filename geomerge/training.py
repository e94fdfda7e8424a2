"""Training with labels by stochastic gradient descent, for end points and baselines of merges."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import torch
from torch import Tensor

from geomerge.data import Split, Task
from geomerge.data.task import SELECTION_SEED
from geomerge.errors import NumericalError
from geomerge.evaluation.accuracy import accuracy
from geomerge.io import paged
from geomerge.io.checkpoint import SUFFIXES, Checkpoint, save_checkpoint
from geomerge.io.files import check_output
from geomerge.metrics import make_sketch
from geomerge.networks.architectures import create_network
from geomerge.networks.batches import Batch, concat
from geomerge.networks.network import Network
from geomerge.options import at_least, check_options, option, positive, replace_options
from geomerge.walks.objectives import CrossEntropy

__all__ = [
    "FineTuneOptions",
    "TrainOptions",
    "fine_tune",
    "straight_line",
    "train",
    "train_checkpoint",
]


@dataclass(frozen=True)
class TrainOptions:
    """Options of a training from the beginning.

    Attributes:
        epochs: Number of passes over the examples; a fraction stops within one.
        learning_rate: Learning rate of the first step; it falls linearly to zero.
        batch: Number of examples per step.
        seed: Seed of the order of examples and of dropout, and of new weights.
    """

    epochs: float = option(8, "passes over the training split", check=at_least(0), group="training")
    learning_rate: float = option(
        0.05,
        "learning rate of the first step; it falls to zero",
        check=at_least(0),
        group="training",
    )
    batch: int = option(128, "number of examples per step", check=at_least(1), group="training")
    seed: int = option(0, "seed of the weights and of the order of examples", group="training")

    def __post_init__(self) -> None:
        """Refuse values that cannot be used."""
        check_options(self)


@dataclass(frozen=True)
class FineTuneOptions:
    """Options of a fine-tuning at a constant rate.

    Attributes:
        learning_rate: Learning rate.
        batch: Number of examples per step.
        seed: Seed of the order of examples.
    """

    learning_rate: float = option(0.02, "learning rate", check=positive)
    batch: int = option(256, "number of examples per step", check=at_least(1))
    seed: int = option(0, "seed of the order of examples")

    def __post_init__(self) -> None:
        """Refuse values that cannot be used."""
        check_options(self)


def train(
    network: Network,
    start: Tensor,  # (n,)
    splits: list[Split],
    options: TrainOptions | None = None,
    *,
    on_step: Callable[[int, int, Tensor], None] | None = None,
    **changes: Any,
) -> Tensor:  # (n,)
    """Train with cross-entropy and stochastic gradient descent.

    Momentum 0.9, learning rate falling linearly to zero, buffers updated in training mode. Every
    example is seen once an epoch; several splits are mixed example by example. Frozen weights stay.

    Args:
        network: Network; it is back in evaluation mode afterwards.
        start: Weights to start from.
        splits: Labelled examples.
        options: Options of the training.
        on_step: Function called after each step with its number, the number of all steps and the
            weights.
        changes: Options by name that replace those of ``options``.

    Returns:
        The trained weights.

    Raises:
        NumericalError: If the loss stops being finite.
        OptionError: If an option cannot be used.
    """
    options = replace_options(options or TrainOptions(), **changes)
    learning_rate, seed = options.learning_rate, options.seed
    w = start.clone()
    module = network.shared_module(w).train()
    named = module.named_parameters()
    parameters = [p.requires_grad_(True) for name, p in named if name not in network.frozen]
    for name, layer in module.named_modules():  # statistics of frozen layers stay
        if f"{name}.running_mean".lstrip(".") in network.frozen:
            layer.eval()
    optimizer = torch.optim.SGD(parameters, learning_rate, momentum=0.9)
    count = sum(len(s.labels) for s in splits)
    batch = min(options.batch, count)
    steps = int(options.epochs * (count // batch))
    order = _mixed(splits, batch, seed)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for step in range(steps):
                x, y = next(order)
                optimizer.param_groups[0]["lr"] = learning_rate * (1 - step / steps)
                loss = torch.nn.functional.cross_entropy(network.call(module, x), y)
                if not torch.isfinite(loss):
                    raise NumericalError(
                        f"the training loss is {float(loss)} after {step} steps, expected a "
                        "finite number; give a smaller learning rate"
                    )
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                if on_step is not None:
                    on_step(step + 1, steps, w)
    finally:
        module.eval().requires_grad_(False)
    return network.ravel({**dict(module.named_parameters()), **dict(module.named_buffers())})


def train_checkpoint(
    file: str | Path,
    architecture: str,
    task: Task,
    options: TrainOptions | None = None,
    *,
    sketch: bool = True,
    device: str = "cpu",
    on_step: Callable[[int, int, Tensor], None] | None = None,
    **changes: Any,
) -> dict[str, float]:
    """Train a new network for a task and write it with the metadata and sketch of a merge.

    Args:
        file: File that is written.
        architecture: Name of the architecture, or ``module:factory``.
        task: Task; its selection split is left out of the training.
        options: Options of the training.
        sketch: Whether a sketch is measured and stored too.
        device: Device that computes, that of the task.
        on_step: Function called after each step, as in :func:`train`.
        changes: Options by name that replace those of ``options``.

    Returns:
        Accuracies on ``"select"`` and ``"test"``.

    Raises:
        GeomergeError: If the network does not fit the task, or the file cannot be written.
    """
    options = replace_options(options or TrainOptions(), **changes)
    seed = options.seed
    check_output(Path(file), SUFFIXES)
    module = create_network(architecture, task.input_shape, task.classes, seed)
    network = Network(module, device)
    classes, name = task.classes, task.name
    task = task.fitted(lambda x: network.check_inputs(network.initial, x, classes, name))
    w = train(network, network.initial, [task.train], options, on_step=on_step)
    made = make_sketch(network, w, task.train.inputs, task.name, seed=seed) if sketch else None
    meta: dict[str, Any] = {
        "architecture": architecture,
        "task": task.name,
        "normalisation": task.normalisation.to_json(),
        "training": {
            "epochs": options.epochs,
            "learning_rate": options.learning_rate,
            "seed": seed,
            "selection_seed": SELECTION_SEED,
            "selection_size": len(task.select.labels),
        },
    }
    if made is not None:
        meta["sketch"] = made.meta
    weights = network.state_dict(w)
    save_checkpoint(file, Checkpoint(weights, meta, made.tensors() if made else {}))
    return {
        "select": accuracy(network, w, task.select),
        "test": accuracy(network, w, task.test),
    }


def _mixed(splits: list[Split], batch: int, seed: int) -> Iterator[tuple[Batch, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    sizes = [len(s.labels) for s in splits]
    owner = torch.repeat_interleave(torch.arange(len(splits)), torch.tensor(sizes))
    local = torch.cat([torch.arange(size) for size in sizes])
    while True:
        order = torch.randperm(len(owner), generator=generator)
        for start in range(0, len(order) - batch + 1, batch):
            chosen = order[start : start + batch]
            xs, ys = [], []
            for k, split in enumerate(splits):
                index = local[chosen[owner[chosen] == k]]
                xs.append(split.inputs.batch(index))
                ys.append(split.labels[index])
            yield concat(xs), torch.cat(ys)


class _Line(Sequence[Tensor]):
    """Points of a straight line, computed one by one: all of them would need much memory."""

    def __init__(self, a: Tensor, b: Tensor, points: int) -> None:
        self._a, self._b, self._shares = a, b, [i / (points - 1) for i in range(points)]

    def __len__(self) -> int:
        return len(self._shares)

    @overload
    def __getitem__(self, at: int) -> Tensor: ...
    @overload
    def __getitem__(self, at: slice) -> list[Tensor]: ...
    def __getitem__(self, at: int | slice) -> Tensor | list[Tensor]:
        if isinstance(at, slice):
            return [self._at(share) for share in self._shares[at]]
        return self._at(self._shares[at])

    def _at(self, share: float) -> Tensor:  # (n,)
        return paged.lerp(self._a, self._b, share)


def straight_line(
    a: Tensor,  # (n,)
    b: Tensor,  # (n,)
    points: int = 41,
) -> Sequence[Tensor]:
    """Return evenly spaced points of the straight line from a to b, both ends included."""
    return _Line(a, b, points)


def fine_tune(
    network: Network,
    start: Tensor,  # (n,)
    split: Split,
    steps: int,
    options: FineTuneOptions | None = None,
    *,
    stiffness: Tensor | None = None,  # (n,)
    **changes: Any,
) -> Iterator[Tensor]:
    """Fine-tune with labels by plain stochastic gradient descent at a constant rate.

    Running statistics stay as they are. Every example is seen once before any is seen again.

    Args:
        network: Network.
        start: Weights to start from.
        split: Labelled examples.
        steps: Number of steps.
        options: Options of the fine-tuning.
        stiffness: Stiffness k of a penalty sum_i k_i (w_i - start_i)^2 / 2; None is no penalty. Its
            part of each step is taken implicitly, so that no stiffness is too large for the rate.
        changes: Options by name that replace those of ``options``.

    Yields:
        Weights after each step, shape (n,).

    Raises:
        NumericalError: If the loss stops being finite.
    """
    options = replace_options(options or FineTuneOptions(), **changes)
    learning_rate = options.learning_rate
    objective = CrossEntropy(network, split, options.batch, options.seed)
    w = start
    for step in range(steps):
        loss, v = objective(w)
        if not loss < float("inf"):
            raise NumericalError(
                f"the loss of fine-tuning is {loss} after {step} steps, expected a finite number; "
                "give a smaller learning rate"
            )
        w = w + learning_rate * v
        if stiffness is not None:
            held = learning_rate * stiffness
            w = (w + held * start) / (1 + held)
        yield w
