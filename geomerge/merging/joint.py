"""Joint training: what a merge is measured against, and what it would take without the labels."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from contextlib import suppress

import torch
from torch import Tensor, nn

from geomerge.data import Task
from geomerge.errors import GeomergeError, OptionError
from geomerge.merging.options import MergeOptions
from geomerge.merging.presets.joint import REFRESH
from geomerge.merging.sides import Side, Sides
from geomerge.networks.architectures import create_network, recognise
from geomerge.networks.network import Network
from geomerge.training import train
from geomerge.walks.walk import FunctionWalkOptions

__all__ = ["NotTrainableError", "joint_samples", "round_samples", "train_jointly"]

_BATCH = 128  # of geomerge train

_METRIC_INPUTS = 2000  # of each task, per measurement of the joint walk's metric


class NotTrainableError(GeomergeError):
    """The networks' tasks cannot be trained in one network here; the merge itself can go on."""


def round_samples(sides: Iterable[Side]) -> int:
    """Return how many inputs a step toward each network's function takes together."""
    sizes = [len(side.task.train.labels) for side in sides if side.task is not None]
    return sum(min(FunctionWalkOptions.batch, size) for size in sizes)


def joint_samples(sides: Sides, options: MergeOptions) -> int:
    """Return how many samples the joint walk takes: its steps, and measuring its metric.

    Args:
        sides: Networks with their tasks.
        options: Of the walk.
    """
    steps = options.steps or FunctionWalkOptions.steps
    sizes = [len(side.task.train.labels) for side in sides if side.task is not None]
    measured = sum(min(_METRIC_INPUTS, size) for size in sizes)
    times = sum(turn < steps for turn in REFRESH)
    return steps * round_samples(sides) + times * measured


def train_jointly(sides: Sides, samples: int, seed: int) -> tuple[Tensor, int]:
    """Train a new network of the same make on the labels of all tasks, mixed example by example.

    Args:
        sides: The networks, each with its task.
        samples: How many examples may be seen, all passes counted.
        seed: Of its initialisation and of the order of examples.

    Returns:
        The weights, shape (n,), and the samples seen.

    Raises:
        NotTrainableError: If a task's labels are not there, the head is not shared, inputs differ
            in shape, or no network of the same widths can be made.
        NumericalError: If the loss stops being finite.
    """
    if sides.head != "shared":
        raise NotTrainableError("is trained here with a shared head only; use `head` shared")
    tasks = [side.task for side in sides if side.task is not None]
    if len(tasks) < len(sides.all):
        raise NotTrainableError("needs the labels of every task; name them with `task`")
    splits = [task.train for task in tasks]
    if any(task.input_shape != tasks[0].input_shape for task in tasks):
        raise NotTrainableError("needs inputs of one shape from all tasks, and theirs differ")
    fresh = _untrained(sides, tasks[0], seed)
    count = sum(len(split.labels) for split in splits)
    batch = min(
        _BATCH, count, sides.network.max_batch or count
    )  # as the limit on memory leaves room for
    epochs = samples / batch / (count // batch)
    w = train(fresh, fresh.initial, splits, epochs=epochs, batch=batch, seed=seed)
    return w, int(epochs * (count // batch)) * batch


def _untrained(sides: Sides, task: Task, seed: int) -> Network:
    """Return a network of the same make with new weights.

    Raises:
        NotTrainableError: If there is no way to make one.
    """
    first = sides.all[0]
    architecture = first.checkpoint.meta.get("architecture") or recognise(first.checkpoint.weights)
    if architecture is not None:
        with suppress(OptionError):  # recognised by its tensors, and of widths that have no name
            x = task.train.inputs.batch(slice(0, 1))
            outputs = sides.network.logits(first.w, x).shape[1]
            module = create_network(architecture, task.input_shape, outputs, seed)
            found = Network(module, sides.network.device)
            if found.shapes == sides.network.shapes:
                return found
    return Network(_reset(copy.deepcopy(sides.network.module), seed), sides.network.device)


def _reset(module: nn.Module, seed: int) -> nn.Module:
    """Initialise every layer anew, as PyTorch's layers do when they are made."""
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
