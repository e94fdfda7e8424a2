"""Numbers of classes by their names: a shared head has one output for each name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from geomerge.data import Task
from geomerge.errors import OptionError
from geomerge.expert import Expert
from geomerge.metrics.sketch import Sketch

__all__ = ["check_numbers", "names_of_config", "renumbered_task", "with_one_numbering"]


def with_one_numbering(experts: Sequence[Expert]) -> list[Expert]:
    """Return experts whose outputs have the order in which the first names its classes.

    Names are those of the task, such as folders of images have them, or of a model folder's
    ``id2label``. Where two networks name the same classes in another order, the rows of the later
    one's head are permuted, and its labels with them: the same function under other numbers.

    Args:
        experts: Networks of one architecture, to be merged with a shared head.

    Raises:
        OptionError: If a name has two numbers and the networks do not name the same classes, or
            the outputs are not those of a last linear layer.
    """
    first, made = experts[0], [experts[0]]
    wanted = _names(first)
    named: list[tuple[str, tuple[str, ...]]] = []
    for expert in experts:
        own = _names(expert)
        if expert is not first and own != wanted and sorted(own) == sorted(wanted):
            expert = _renumbered(expert, own, wanted)
            own = wanted
        if expert is not first:
            made.append(expert)
        named.append((expert.task.name if expert.task is not None else expert.source, own))
    check_numbers(named)
    return made


def check_numbers(named: Iterable[tuple[str, Sequence[str]]]) -> None:
    """Refuse networks of a shared head that name one class by two numbers.

    Args:
        named: Name of each network's task or file, and the names of its classes in order; none
            where they are not known.

    Raises:
        OptionError: If a name has two numbers.
    """
    known: dict[str, tuple[int, str]] = {}
    for told, own in named:
        apart = [name for k, name in enumerate(own) if known.setdefault(name, (k, told))[0] != k]
        if apart:
            number, before = known[apart[0]]
            others = f" (and so on for {len(apart) - 1} more)" if len(apart) > 1 else ""
            raise OptionError(
                f"{apart[0]!r} is class {number} of {before} and class {own.index(apart[0])} of "
                f"{told}{others}, expected one number in a shared head, where class k of every "
                "task is output k; use `head` separate, or train networks with one number for "
                "each class"
            )


def names_of_config(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of a model's classes in order; empty where ``id2label`` has none.

    Args:
        config: Content of the model's ``config.json``.
    """
    labels = config.get("id2label") or {}
    names = tuple(str(labels[k]) for k in sorted(labels, key=int))
    return () if all(name.upper().startswith("LABEL_") for name in names) else names


def _names(expert: Expert) -> tuple[str, ...]:
    """Return the names of a network's classes in order; empty where they are not known."""
    if expert.task is not None and expert.task.class_names:
        return expert.task.class_names
    return names_of_config(expert.meta.get("config", {}))


def _renumbered(expert: Expert, own: tuple[str, ...], wanted: tuple[str, ...]) -> Expert:
    """Return an expert with its outputs and labels in another order of its classes."""
    network = expert.network
    order = torch.tensor([own.index(name) for name in wanted])
    heads = [n for n, layer in network.module.named_modules() if isinstance(layer, nn.Linear)]
    rows = [name for name in network.shapes if name in (f"{heads[-1]}.weight", f"{heads[-1]}.bias")]
    if any(network.shapes[name][0] != len(own) for name in rows):
        raise OptionError(
            f"{expert.source} names its classes in another order than the first network, and its "
            f"last linear layer has no row for each of {len(own)}; use `head` separate"
        )
    tensors = network.unravel(expert.weights.clone())
    for name in rows:
        tensors[name].copy_(tensors[name][order.to(tensors[name].device)])
    meta = {**expert.meta, "class_order": order.tolist()}
    if "config" in meta:
        numbers = {name: k for k, name in enumerate(wanted)}
        labels = {str(k): name for name, k in numbers.items()}
        meta["config"] = {**meta["config"], "id2label": labels, "label2id": numbers}
    shown = ", ".join(f"{name!r} = {k}" for k, name in enumerate(wanted[:4]))
    note = (
        f"the classes of {expert.source} were numbered as the first network's, by their names: "
        f"{shown}{', ...' if len(wanted) > 4 else ''}"
    )
    return replace(
        expert, weights=network.ravel(tensors), meta=meta, notes=(*expert.notes, note),
        task=None if expert.task is None else renumbered_task(expert.task, order),
        sketch=_renumbered_sketch(expert, order, f"{heads[-1]}.weight"),
    )  # fmt: skip


def renumbered_task(task: Task, order: Tensor) -> Task:  # (m,)
    """Return a task whose class k is its class ``order[k]``."""
    new = torch.empty_like(order)
    new[order] = torch.arange(len(order))
    train, select, test = (
        replace(split, labels=new.to(split.labels.device)[split.labels])
        for split in (task.train, task.select, task.test)
    )
    names = tuple(task.class_names[k] for k in order.tolist()) if task.class_names else ()
    return replace(task, train=train, select=select, test=test, class_names=names)


def _renumbered_sketch(expert: Expert, order: Tensor, head: str) -> Sketch | None:
    """Return the sketch with the outputs of its last layer in another order; None without one."""
    if expert.sketch is None:
        return None
    start = expert.network.slices[head].start
    layers = tuple(
        replace(layer, outputs=layer.outputs.with_vectors(layer.outputs.vectors[order]))
        if layer.weight.start == start
        else layer
        for layer in expert.sketch.metric.layers
    )
    return Sketch(replace(expert.sketch.metric, layers=layers), expert.sketch.meta)
