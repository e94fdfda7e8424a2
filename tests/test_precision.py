"""Passes in bfloat16: derivatives are nearly those of float32, everything else stays in it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from merges import merged_of
from torch import Tensor, nn
from torch.nn import functional

import geomerge as gm
from geomerge.errors import OptionError
from geomerge.evaluation.accuracy import accuracy
from geomerge.metrics import exact_metric, gram_metric
from geomerge.metrics.kronecker.estimate import estimate_kronecker
from geomerge.networks import gradients
from geomerge.pruning.options import FunctionOptions
from geomerge.pruning.problem import prepare_problem
from geomerge.walks.objectives import MixupDrift, OutputDrift

CLASSES = 5


class Transformer(nn.Module):
    """Embedding, class token, one layer of attention, and a scale of its outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(50, 32)
        self.token = nn.Parameter(0.1 * torch.randn(1, 1, 32))
        self.layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
        self.scale = nn.Parameter(torch.full((32,), 0.5))
        self.head = nn.Linear(32, CLASSES)

    def forward(self, ids: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(len(ids), -1, -1), self.words(ids)], dim=1)
        out: Tensor = self.head(self.layer(x)[:, 0] * self.scale)
        return out


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(50, 16)
        self.layer = nn.LSTM(16, 24, batch_first=True)
        self.head = nn.Linear(24, CLASSES)

    def forward(self, ids: Tensor) -> Tensor:
        out: Tensor = self.head(self.layer(self.words(ids))[0][:, -1])
        return out


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, CLASSES))


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.PReLU(), nn.GroupNorm(2, 16),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, CLASSES),
    )  # fmt: skip


def factored() -> nn.Module:
    """Weights that are computed from others."""
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(20, 64))
    return nn.Sequential(layer, nn.Tanh(), nn.Linear(64, CLASSES))


MAKERS = [mlp, cnn, factored, Transformer, Recurrent]


def case(make: Callable[[], nn.Module]) -> tuple[gm.Network, Tensor]:
    """Return a network and inputs that it takes."""
    torch.manual_seed(0)
    network = gm.Network(make())
    if make in (Transformer, Recurrent):
        return network, torch.randint(0, 50, (64, 9))
    return network, torch.randn(64, 3, 8, 8) if make is cnn else torch.randn(64, 20)


def loss_of(logits: Tensor) -> Tensor:
    assert logits.dtype == torch.float32
    return functional.cross_entropy(logits, torch.arange(len(logits)) % CLASSES)


def apart(one: Tensor, other: Tensor) -> float:
    """Return the relative distance of a vector from another, in float32 both."""
    assert one.dtype == other.dtype == torch.float32
    return float((one - other).norm() / other.norm())


@pytest.mark.parametrize("make", MAKERS)
def test_gradients_differ_by_rounding_and_logits_not_at_all(
    make: Callable[[], nn.Module],
) -> None:
    network, x = case(make)
    w, low = network.initial, network.with_precision("bfloat16")
    _, exact = network.gradient(w, x, loss_of)
    loss, found = low.gradient(w, x, loss_of)
    assert 0 < apart(found, exact) < 0.04
    in_parts, parts = low.limited(20).gradient(w, x, loss_of)
    assert in_parts == pytest.approx(loss, rel=1e-2)
    assert apart(parts, found) < 0.01
    assert torch.equal(low.logits(w, x), network.logits(w, x))
    assert low.outputs(w, x).dtype == torch.float32
    assert low.initial.dtype == torch.float32
    assert network.precision == "float32"  # the network that came stays as it is
    assert torch.equal(low.with_precision("float32").gradient(w, x, loss_of)[1], exact)


@pytest.mark.parametrize("make", MAKERS)
def test_targets_are_rounded_as_the_network_that_walks(make: Callable[[], nn.Module]) -> None:
    network, x = case(make)
    low = network.with_precision("bfloat16")
    targets = low.logits_by_precision(network.initial, x).softmax(dim=1)
    assert torch.equal(
        network.logits_by_precision(network.initial, x), network.logits(network.initial, x)
    )
    assert targets.dtype == torch.float32

    def loss(logits: Tensor) -> Tensor:
        return functional.cross_entropy(logits, targets)

    _, at_itself = low.gradient(network.initial, x, loss)
    _, elsewhere = low.gradient(1.1 * network.initial, x, loss)
    assert at_itself.norm() < 0.01 * elsewhere.norm()


def test_drifts_of_pruned_networks_begin_at_zero() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(60, 1, 4, 5), torch.arange(60) % CLASSES
    network = nn.Sequential(nn.Flatten(), nn.Linear(20, 30), nn.Tanh(), nn.Linear(30, CLASSES))
    parts = {"select": (x[40:50], y[40:50]), "test": (x[50:], y[50:])}
    task = gm.Task.from_tensors(x[:40], y[:40], **parts)
    options = FunctionOptions(precision="bfloat16")
    problem = prepare_problem(gm.Expert.from_module(network, task), options, seed=0)
    low, inputs, w = problem.network, problem.inputs, problem.weights
    plain = OutputDrift(low, problem.outputs, inputs, problem.output, 40, 0)
    mixed = MixupDrift(low, w, inputs, problem.output, 40, 0, 0.5)
    for drift in (plain, mixed):
        assert float(drift(w)[1].norm()) < 1e-3 * float(drift(1.1 * w)[1].norm())


def test_large_matrices_write_the_gradient_that_autograd_finds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.head = nn.Linear(20, 20), nn.Linear(20, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(self.layer(self.layer(x).tanh()).tanh())
            return out

    torch.manual_seed(0)
    low, x = gm.Network(Twice()).with_precision("bfloat16"), torch.randn(64, 20)
    _, plain = low.gradient(low.initial, x, loss_of)
    monkeypatch.setattr(gradients, "LARGE", 1)
    _, written = low.gradient(low.initial, x, loss_of)
    assert apart(written, plain) < 0.01


@pytest.mark.parametrize("make", MAKERS)
def test_kronecker_factors_differ_by_rounding(make: Callable[[], nn.Module]) -> None:
    network, x = case(make)
    w = network.initial
    exact, found = (  # of all outputs, since random signs depend on the order of the outputs
        estimate_kronecker(known, w, [x], sign_vectors=None)
        for known in (network, network.with_precision("bfloat16"))
    )
    v = torch.randn(network.n)
    assert 0 < apart(found.mv(v), exact.mv(v)) < 0.03
    assert [layer.name for layer in found.layers] == [layer.name for layer in exact.layers]
    if len(exact.diagonal):
        assert 0 < apart(found.diagonal, exact.diagonal) < 0.03


def test_exact_metrics_stay_in_float32() -> None:
    network, x = case(mlp)
    w, low, v = network.initial, network.with_precision("bfloat16"), torch.randn(network.n)
    assert torch.equal(exact_metric(low, w, [x]).mv(v), exact_metric(network, w, [x]).mv(v))
    assert torch.equal(gram_metric(low, w, x[:9]).mv(v), gram_metric(network, w, x[:9]).mv(v))


def test_a_short_merge_ends_near_that_of_float32(digits: Path) -> None:
    ends = [gm.load_checkpoint(digits / f"{name}.pt") for name in "ab"]
    tasks = [gm.load_task(name) for name in ("digits", "digits-permuted")]
    data = {"task": ("a=digits", "b=digits-permuted"), "manifold": ("digits", "digits-permuted")}
    options = {**data, "damping": 1e-3, "steps": 40}
    scores = []
    for precision in ("float32", "bfloat16"):
        merged = merged_of(ends, dict(options, precision=precision))
        network = merged.space.network
        assert merged.preset.space.network.precision == precision
        assert network.precision == merged.expert.network.precision == "float32"
        assert merged.w.dtype == torch.float32
        assert any("bfloat16" in note for note in merged.notes) == (precision == "bfloat16")
        scores.append(min(accuracy(network, merged.w, task.test) for task in tasks))
    assert scores[1] == pytest.approx(scores[0], abs=0.03)


def test_the_command_takes_it_and_the_report_states_it(
    geomerge: Callable[..., Any], tiny: Path, tmp_path: Path
) -> None:
    found = geomerge(
        "merge", tiny / "a.pt", tiny / "b.pt", "--manifold", "digits", "--manifold",
        "digits-permuted", "--steps", "3", "--damping", "1e-3", "--precision", "bfloat16",
        "--out", "run", cwd=tmp_path,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert any("passes in bfloat16" in note for note in report["notes"])
    assert (
        json.loads((tmp_path / "run" / "recipe.json").read_text())["merge"]["precision"]
        == "bfloat16"
    )


def test_what_cannot_be_computed_is_refused() -> None:
    double = gm.Network(mlp().double())
    assert double.with_precision("float32").precision == "float32"
    with pytest.raises(OptionError, match="weights in float32, got float64"):
        double.with_precision("bfloat16")
