from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import geomerge as gm
from geomerge.errors import RunError

QUICK: dict[str, Any] = {"steps": 4, "stages": 2, "points": 8, "batch": 16}


class Pair(nn.Module):
    """Two inputs, and a tuple whose first entry is meant."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 6), nn.Linear(2, 6, bias=False)
        self.hidden, self.head = nn.Linear(6, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        hidden = (self.first(x) + self.second(t)).tanh()
        return self.head(self.hidden(hidden).tanh()), hidden


class Named(nn.Module):
    """Tokens and a mask by name, and a mapping with logits."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(9, 5)
        self.hidden, self.head = nn.Linear(5, 7), nn.Linear(7, 3)

    def forward(self, tokens: Tensor, mask: Tensor) -> dict[str, Tensor]:
        weight = mask.float().unsqueeze(2)
        mean = (self.table(tokens) * weight).sum(dim=1) / weight.sum(dim=1)
        return {"logits": self.head(self.hidden(mean).tanh())}


def experts() -> dict[str, gm.Expert]:
    torch.manual_seed(0)
    y = torch.arange(90) % 3
    mask = torch.arange(4) < torch.randint(1, 5, (90, 1))
    pair = gm.Task.from_tensors((torch.randn(90, 5), torch.randn(90, 2)), y, name="pairs")
    words = {"tokens": torch.randint(0, 9, (90, 4)), "mask": mask}
    tanh = nn.Sequential(nn.Flatten(), nn.Linear(64, 7), nn.Tanh(), nn.Linear(7, 10))
    rows = gm.Task.from_tensors(torch.randn(90, 5), y, name="rows")
    double = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).double()
    return {
        "pair": gm.Expert.from_module(Pair(), pair),
        "named": gm.Expert.from_module(Named(), gm.Task.from_tensors(words, y, name="words")),
        "tanh": gm.Expert.from_module(tanh, gm.load_task("digits")),
        "double": gm.Expert.from_module(double, rows),
    }


HIDDEN = {"pair": "hidden", "named": "hidden", "tanh": "1", "double": "0"}


@pytest.mark.parametrize("name", HIDDEN)
def test_any_network_is_sparsified_and_reconfigured(name: str) -> None:
    dense, layer = experts()[name], HIDDEN[name]
    x = dense.task.test.inputs.batch(slice(0, 5))
    before = dense.network.logits(dense.weights, x)
    single = gm.sparsify(dense, sparsity=0.5, **QUICK)
    assert single.rows[-1].zeros == pytest.approx(0.5, abs=0.03)
    assert single.shrunk() is None
    result = gm.sparsify(dense, remove={layer: 3}, **QUICK)
    assert torch.equal(dense.network.logits(dense.weights, x), before)  # the dense one stays
    assert {name: len(units) for name, units in result.removed.items()} == {layer: 3}
    assert torch.equal(result.path.at(0), dense.weights)  # in the same precision
    assert torch.equal(result.path.at(1), result.expert.weights)
    expected = result.expert.network.logits(result.expert.weights, x)
    for module in (result.module(), result.shrunk()):
        torch.testing.assert_close(dense.network.call(module, x), expected)
    back = gm.reconfigure(result, [gm.PlanStep("back", restore={layer: 2})], **QUICK)
    assert {name: len(units) for name, units in back["back"].removed.items()} == {layer: 1}
    assert back.dense.weights is dense.weights
    inspection = gm.inspect(dense, inputs=20)
    assert layer in {one.layer for one in inspection.units}


def test_modules_are_new_each_time_and_can_be_trained() -> None:
    result = gm.sparsify(experts()["tanh"], sparsity=0.5, **QUICK)
    one, other = result.module(), result.module()
    for parameter in one.parameters():
        assert parameter.requires_grad
        parameter.data += 1
    state = other.state_dict()
    assert all(torch.equal(v, result.module().state_dict()[k]) for k, v in state.items())
    assert isinstance(one[2], nn.Tanh)  # nothing is guessed where the module is given
    assert result.notes == []
    assert result.accuracies["dense"] == result.dense.accuracy()
    assert result.accuracies["walk"] == result.expert.accuracy()


def test_a_temporary_path_lives_as_long_as_it_is_used() -> None:
    path = gm.sparsify(experts()["tanh"], sparsity=0.5, **QUICK).path
    gc.collect()
    folder = path.folder
    assert torch.isfinite(path.at(0.5)).all()
    del path
    gc.collect()
    assert not folder.parent.exists()


def test_results_are_saved_whole_or_not_at_all(tmp_path: Path) -> None:
    expert = experts()["tanh"]
    result = gm.sparsify(expert, remove={"1": 2}, **QUICK)
    result.save(tmp_path / "sparse")
    saved = gm.load_checkpoint(tmp_path / "sparse" / "sparse.safetensors")
    assert torch.equal(result.expert.network.ravel(saved.weights), result.expert.weights)
    path = gm.WeightPath(tmp_path / "sparse" / "path", arch=expert.module)
    assert torch.equal(path.at(1.0), result.expert.weights)
    with pytest.raises(RunError, match="sparse"):
        result.save(tmp_path / "sparse")
    moves = gm.reconfigure(expert, [gm.PlanStep("small", {"1": 2})], **QUICK)
    moves.save(tmp_path / "moves")
    assert {f.name for f in (tmp_path / "moves").iterdir()} == {
        "dense.safetensors", "small.safetensors", "moves",
    }  # fmt: skip
    path = gm.WeightPath(tmp_path / "moves" / "moves" / "small" / "path", arch=expert.module)
    assert torch.equal(path.at(1.0), moves.expert.weights)


def test_what_notebooks_show() -> None:
    expert = experts()["tanh"]
    result = gm.sparsify(expert, remove={"1": 2}, **QUICK)
    moves = gm.reconfigure(expert, [gm.PlanStep("small", {"1": 2})], **QUICK)
    inspection = gm.inspect(expert, inputs=30)
    assert "2 units removed" in result._repr_html_()
    assert "small" in moves._repr_html_()
    assert "digits" in inspection._repr_html_()
    for found in (result, moves, inspection):
        assert "digits" in repr(found)
        assert len(repr(found)) < 250
