"""Joint training on the labels of all tasks, the reference of a merge, and its sample counts."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from contextlib import suppress

import torch
from torch import Tensor, nn

from geomerge.data import Task
from geomerge.errors import GeomergeError, OptionError
from geomerge.expert import Expert
from geomerge.merging.presets.joint import MAPS, REFRESH, few_are_enough
from geomerge.networks.architectures import create_network
from geomerge.networks.network import Network
from geomerge.training import train
from geomerge.walks.walk import FunctionWalkOptions
from geomerge.weight_space import WeightSpace

__all__ = ["NotTrainableError", "joint_samples", "round_samples", "train_jointly"]

_BATCH = 128  # batch size, as in geomerge train
_METRIC_INPUTS = 2000  # inputs of each task, per measurement of the joint walk's metric


class NotTrainableError(GeomergeError):
    """The tasks cannot be trained in one network here; the merge itself can continue."""


def round_samples(experts: Iterable[Expert]) -> int:
    """Return the number of inputs that a step toward each expert's function takes together."""
    sizes = [len(expert.task.train.labels) for expert in experts if expert.task is not None]
    return sum(min(FunctionWalkOptions.batch, size) for size in sizes)


def joint_samples(space: WeightSpace, steps: int | None = None) -> int:
    """Return the number of samples that the joint walk takes: its steps, and its metric.

    Args:
        space: Experts with their tasks.
        steps: Steps of the walk; None takes the usual number.
    """
    steps = steps or FunctionWalkOptions.steps
    sizes = [len(expert.task.train.labels) for expert in space if expert.task is not None]
    most = MAPS if few_are_enough(space) else _METRIC_INPUTS
    measured = sum(min(most, size) for size in sizes)
    times = sum(turn < steps for turn in REFRESH)
    return steps * round_samples(space) + times * measured


def train_jointly(space: WeightSpace, samples: int, seed: int) -> tuple[Tensor, int]:
    """Train a new network of the same make on the labels of all tasks, mixed example by example.

    Args:
        space: Experts, each with its task.
        samples: Number of examples in all passes.
        seed: Seed of the network's initialisation and of the order of examples.

    Returns:
        The weights, shape (n,), and the number of samples seen.

    Raises:
        NotTrainableError: If a task's labels are missing, the head is not shared, inputs differ in
            shape, or no network of the same widths can be made.
        NumericalError: If the loss stops being finite.
    """
    if space.head != "shared":
        raise NotTrainableError("is trained here with a shared head only; use `head` shared")
    tasks = [expert.task for expert in space if expert.task is not None]
    if len(tasks) < len(space):
        raise NotTrainableError("needs the labels of every task; name them with `task`")
    splits = [task.train for task in tasks]
    if any(task.input_shape != tasks[0].input_shape for task in tasks):
        raise NotTrainableError("needs inputs of one shape from all tasks, and theirs differ")
    fresh = _untrained(space, tasks[0], seed)
    count = sum(len(split.labels) for split in splits)
    most = space.network.max_batch or count  # a limit on memory leaves no room for more
    batch = min(_BATCH, count, most)
    epochs = samples / batch / (count // batch)
    held = space.network.held
    fresh = fresh.holding(space.network.frozen)
    start = fresh.initial
    if held is not None:  # a backbone that was not trained is part of the make
        start = torch.where(held, space.experts[0].weights, start)
    w = train(fresh, start, splits, epochs=epochs, batch=batch, seed=seed)
    return w, int(epochs * (count // batch)) * batch


def _untrained(space: WeightSpace, task: Task, seed: int) -> Network:
    """Return a network of the same make with new weights.

    Raises:
        NotTrainableError: If there is no way to make one.
    """
    first, network = space.experts[0], space.network
    architecture = first.architecture
    if architecture is not None:
        with suppress(OptionError):  # recognised by its tensors, with widths that no name has
            x = task.train.inputs.batch(slice(0, 1))
            outputs = network.logits(first.weights, x).shape[1]
            module = create_network(architecture, task.input_shape, outputs, seed)
            made = network.alike(module)
            if made.shapes == network.shapes and type(module) is type(network.module):
                return made
    return network.alike(_initialised(copy.deepcopy(network.module), seed))


def _initialised(module: nn.Module, seed: int) -> nn.Module:
    """Initialise every layer as PyTorch initialises new ones."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name, layer in module.named_modules():
            if next(layer.parameters(recurse=False), None) is None:
                continue
            again = getattr(layer, "reset_parameters", getattr(layer, "_reset_parameters", None))
            if again is None:
                raise NotTrainableError(
                    f"needs a new network of the same make, and {name or 'the network'!r} "
                    f"({type(layer).__name__}) holds weights that it cannot initialise; name the "
                    "network's factory with `arch`"
                )
            again()
    return module
