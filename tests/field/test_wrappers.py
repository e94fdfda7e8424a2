"""Modules in wrappers, models merged before, and the file of a strategy."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from small_streams import learn, three_classes
from torch import Tensor, nn

import geomerge as gm
from geomerge.networks.wrappers import plain_module


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Sequential(nn.Linear(8, 3)))


def averaged(module: nn.Module) -> nn.Module:
    return torch.optim.swa_utils.AveragedModel(module)


def compiled_inside(module: nn.Module) -> nn.Module:
    module[2] = torch.compile(module[2])
    return module


def compiled_in_place(module: nn.Module) -> nn.Module:
    module.compile()
    return module


WRAPPERS: list[Callable[[nn.Module], nn.Module]] = [
    torch.compile,
    nn.DataParallel,
    averaged,
    compiled_inside,
    compiled_in_place,
    lambda module: torch.compile(nn.DataParallel(module)),
]
NAMES = ["compile", "DataParallel", "AveragedModel", "inside", "in-place", "both"]


@pytest.mark.parametrize("wrap", WRAPPERS, ids=NAMES)
def test_the_module_inside_is_walked(wrap: Callable[[nn.Module], nn.Module]) -> None:
    x, y = three_classes()
    task = gm.Task.from_tensors(x, y)
    wrapped = wrap(small())
    names = list(wrapped.state_dict())
    expert = gm.Expert.from_module(wrapped, task)
    assert list(expert.network.shapes) == list(small().state_dict())
    assert expert.source == "Sequential"
    assert type(expert.module()) is nn.Sequential
    assert torch.equal(expert.network.logits(expert.weights, x), small()(x))
    assert list(wrapped.state_dict()) == names  # the user's module is as it was
    same = plain_module(wrapped)
    assert {id(p) for p in same.parameters()} == {id(p) for p in wrapped.parameters()}


def test_wrapped_and_plain_networks_merge() -> None:
    task = gm.Task.from_tensors(*three_classes())
    experts = [gm.Expert.from_module(m, task) for m in (torch.compile(small()), small())]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # compiled modules warned five times
        merged = gm.merge(experts, steps=1, points=8)
    assert list(merged.module().state_dict()) == list(small().state_dict())


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda m: torch.compile(m, backend="eager")])
def test_wrapped_models_learn_streams(wrap: Callable[[nn.Module], nn.Module]) -> None:
    plain, wrapped = small(), wrap(small())
    torch.manual_seed(1)
    learned = learn(plain)
    torch.manual_seed(1)
    other = learn(wrapped)
    assert len(other.merge_reports) == 1
    for one, two in zip(plain.parameters(), wrapped.parameters(), strict=True):
        torch.testing.assert_close(one, two)
    assert learned.memory[0].name == other.memory[0].name


def merged_by_a_stream() -> nn.Module:
    model = small()
    learn(model)
    return model


def merged_by_a_merge() -> nn.Module:
    task = gm.Task.from_tensors(*three_classes())
    experts = [gm.Expert.from_module(small(), task) for _ in range(2)]
    return gm.merge(experts, steps=1, points=8).module()


def loaded_from_a_merge(folder: Path) -> nn.Module:
    meta = {"merged": {"preset": "joint"}}
    gm.save_checkpoint(folder / "m.pt", gm.Checkpoint(small().state_dict(), meta))
    return gm.from_pretrained(folder / "m.pt", arch=small)


@pytest.mark.parametrize("make", ["stream", "merge", "file", "copy"])
def test_a_model_merged_before_starts_without_memory_and_is_told_so(
    make: str, tmp_path: Path
) -> None:
    model = {
        "stream": merged_by_a_stream,
        "merge": merged_by_a_merge,
        "file": lambda: loaded_from_a_merge(tmp_path),
        "copy": lambda: copy.deepcopy(merged_by_a_merge()),
    }[make]()
    model.requires_grad_(True)
    with pytest.warns(UserWarning, match="starts without the memory.*maybe_load_checkpoint"):
        learn(model)


def test_a_new_model_is_not_told_of_memory() -> None:
    learn(small())


def test_save_checkpoint_stands_where_avalanche_has_it(tmp_path: Path) -> None:
    from geomerge import strategies

    assert "save_checkpoint" in dir(strategies)
    model = small()
    strategy = learn(model)
    strategies.save_checkpoint(strategy, tmp_path / "s.pt")
    again, _ = strategies.maybe_load_checkpoint(strategy, tmp_path / "s.pt")
    assert len(again.memory) == 2
    for one, two in zip(again.model.parameters(), model.parameters(), strict=True):
        assert torch.equal(one, two)


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(20, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.bag(x))


def test_token_streams_are_told_at_the_start_and_the_advice_works() -> None:
    data = [(torch.randint(0, 20, (40, 6)), torch.arange(40) % 3) for _ in range(2)]
    model = Tokens()
    before = model.bag.weight.detach().clone()
    with pytest.raises(gm.GeomergeError, match="`pseudo_inputs` as 0 and a number of `examples`"):
        learn(model, data=data)
    assert torch.equal(model.bag.weight, before)  # before any training
    assert len(learn(model, data=data, pseudo_inputs=0, examples=10).memory) == 2


class Remembering(nn.Module):
    """Keeps the features of its last batch, with their graph."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(6, 8), nn.Linear(8, 3)
        self.features = None

    def forward(self, x: Tensor) -> Tensor:
        self.features = self.body(x).relu()
        return self.head(self.features)


def test_modules_that_keep_tensors_of_a_graph_are_copied() -> None:
    model = Remembering()
    model(torch.randn(4, 6)).sum().backward()
    expert = gm.Expert.from_module(model, gm.Task.from_tensors(*three_classes()))
    assert not model.features.is_leaf  # the user's module is as it was
    assert expert.module() is not model
    assert len(learn(Remembering()).merge_reports) == 1
