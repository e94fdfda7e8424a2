from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from geomerge import Task
from geomerge.data import Inputs, Normalisation, as_they_are
from geomerge.errors import TaskError
from geomerge.networks.batches import Batch, leaves

X = torch.arange(120 * 5, dtype=torch.float32).view(120, 5)
Y = torch.arange(120) % 3
TOKENS = {"tokens": torch.arange(120 * 4).view(120, 4), "mask": torch.ones(120, 4, dtype=bool)}


def rows(batch: Batch) -> list[Any]:
    return sorted(leaves(batch)[0].flatten(1).tolist())


def everything(task: Task) -> list[Any]:
    return sorted(row for s in (task.train, task.select, task.test) for row in rows(s.inputs.raw))


def sizes(task: Task) -> list[int]:
    return [len(split.labels) for split in (task.train, task.select, task.test)]


def test_splits_are_cut_and_hold_every_example_once() -> None:
    task = Task.from_tensors(X, Y, name="mine")
    assert sizes(task) == [80, 20, 20]
    assert everything(task) == rows(X)
    assert (task.name, task.classes, task.input_shape) == ("mine", 3, (5,))
    assert task.train.inputs.name == "mine"
    for split in (task.train, task.select, task.test):
        assert torch.equal(split.labels, split.inputs.raw[:, 0].long() // 5 % 3)


def test_splits_that_are_given_are_taken() -> None:
    task = Task.from_tensors(X[:60], Y[:60], test=(X[60:90], Y[60:90]), select=(X[90:], Y[90:]))
    assert sizes(task) == [60, 30, 30]
    assert torch.equal(task.test.inputs.raw, X[60:90])
    assert torch.equal(task.select.inputs.raw, X[90:])


def test_arrays_are_taken_as_tensors_are() -> None:
    one, two = Task.from_tensors(X, Y), Task.from_tensors(X.numpy(), Y.numpy())
    assert torch.equal(one.train.inputs.raw, two.train.inputs.raw)


@pytest.mark.parametrize("batch", [7, 120])
def test_loaders_and_datasets_give_what_tensors_give(batch: int) -> None:
    dataset = TensorDataset(X, Y)
    whole = Task.from_tensors(X, Y)
    for task in (
        Task.from_loader(DataLoader(dataset, batch)),
        Task.from_loader([(X[:50], Y[:50]), [X[50:], Y[50:]]]),
        Task.from_dataset(dataset),
        Task.from_loader(dataset),
    ):
        assert torch.equal(task.train.inputs.raw, whole.train.inputs.raw)
        assert torch.equal(task.test.labels, whole.test.labels)


def test_a_loader_may_have_a_dataset_for_its_test_split() -> None:
    task = Task.from_loader(DataLoader(TensorDataset(X, Y), 7), test=TensorDataset(X[:20], Y[:20]))
    assert torch.equal(task.test.inputs.raw, X[:20])
    assert torch.equal(task.test.labels, Y[:20])


@pytest.mark.parametrize("label", ["label", "labels", "kind"])
def test_mappings_hold_their_labels(label: str) -> None:
    examples = [{**{k: v[i] for k, v in TOKENS.items()}, label: int(Y[i])} for i in range(120)]
    given = None if label.startswith("label") else label
    task = Task.from_dataset(examples, label=given)
    assert sizes(task) == [80, 20, 20]
    assert task.input_shape == (("tokens", (4,)), ("mask", (4,)))
    batch = task.train.inputs.batch(slice(0, 3))
    assert isinstance(batch, dict)
    assert (batch["tokens"].dtype, batch["mask"].dtype) == (torch.int64, torch.bool)
    assert torch.equal(task.train.labels, batch_labels(task.train.inputs))


def batch_labels(inputs: Inputs) -> torch.Tensor:
    assert isinstance(inputs.raw, dict)
    return inputs.raw["tokens"][:, 0] // 4 % 3


def test_several_inputs_are_a_tuple_with_the_labels_last() -> None:
    task = Task.from_loader([(X, X[:, :2], Y)])
    assert task.input_shape == ((5,), (2,))
    assert isinstance(task.train.inputs.batch(slice(0, 3)), tuple)
    assert len(task.train.inputs.sample(6, seed=0)) == 6


def test_images_of_pil_become_bytes() -> None:
    image = pytest.importorskip("PIL.Image")
    pictures = [(image.new("RGB", (6, 4), (k, 0, 255)), k % 2) for k in range(12)]
    task = Task.from_dataset(pictures)
    assert task.input_shape == (3, 4, 6)
    assert task.train.inputs.raw.dtype == torch.uint8
    assert task.normalisation != Normalisation((0.0,), (1.0,))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Task.from_tensors(X, Y[:50]), "120 training inputs and 50 labels"),
        (lambda: Task.from_tensors((X, X[:50]), Y), "50 training inputs and 120 labels"),
        (lambda: Task.from_tensors("x", Y), "holds a str, expected tensors"),
        (lambda: Task.from_tensors(X, Y.float()), "not one class number"),
        (lambda: Task.from_tensors(X / 0, Y), "not all finite"),
        (lambda: Task.from_loader([X]), "without labels"),
        (lambda: Task.from_loader([{"tokens": X}]), "without labels"),
        (lambda: Task.from_loader([{"x": X, "name": "text", "label": Y}]), "name: str"),
        (lambda: Task.from_loader(iter([])), "no batches"),
        (lambda: Task.from_loader([(X, Y), (X[:, :3], Y)]), "pad or crop"),
        (lambda: Task.from_dataset([(X[0], 0), (X[0, :2], 1)]), "cannot be put into one batch"),
        (
            lambda: Task.from_tensors((X, X), Y, normalisation=Normalisation((1.0,), (1.0,))),
            "normalise them yourself",
        ),
    ],
)
def test_data_that_does_not_fit_is_refused(make: Any, message: str) -> None:
    with pytest.raises(TaskError, match=message):
        make()


def test_inputs_of_several_tensors_are_drawn_together() -> None:
    inputs = as_they_are((X, Y))
    x, y = leaves(inputs.sample(10, seed=1).batch(slice(None)))
    assert torch.equal(x[:, 0].long() // 5 % 3, y)
    assert y.dtype == torch.int64
    assert not inputs.continuous
    assert as_they_are(X).continuous
    assert inputs.nbytes == X.nbytes + Y.nbytes
    assert sum(len(leaves(b)[0]) for b in inputs.batches(50)) == len(inputs) == 120
