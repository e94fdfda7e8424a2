from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from merges import merged_of, prepared_of
from torch import nn

from geomerge import Checkpoint, Network, load_checkpoint
from geomerge.errors import OptionError
from geomerge.merging.memory import fit_memory
from geomerge.options import replace_options
from geomerge.walks.objectives import divergence

OPTIONS = {"manifold": ("digits",), "task": ("a=digits", "b=digits-permuted")}


def wide(seed: int, width: int) -> Checkpoint:
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, width), nn.ReLU(),
        nn.Linear(width, 10),
    )  # fmt: skip
    return Checkpoint(Network(net).module.state_dict(), {"architecture": "mlp"})


def normed() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(64, 20_000),
        nn.BatchNorm1d(20_000),
        nn.ReLU(),
        nn.Linear(20_000, 10),
    )


def test_a_pass_in_parts_gives_the_same() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 9), nn.BatchNorm1d(9), nn.Tanh(), nn.Linear(9, 4)).double()
    network, x = Network(net), torch.randn(11, 6, dtype=torch.float64)
    w = torch.randn(network.n, dtype=torch.float64).abs()
    loss_of = divergence(torch.randn(11, 4, dtype=torch.float64).log_softmax(1))
    logits, (loss, gradient) = network.logits(w, x), network.gradient(w, x, loss_of)
    network.max_batch = 3
    torch.testing.assert_close(network.logits(w, x), logits)
    parts, found = network.gradient(w, x, loss_of)
    assert parts == pytest.approx(loss)
    torch.testing.assert_close(found, gradient)
    assert not any(p.requires_grad for p in network.module.parameters())


def test_less_memory_means_smaller_passes_then_another_metric_then_a_refusal() -> None:
    passes, metrics = [], []
    networks = [wide(0, 3000), wide(1, 3000)]
    for limit in ("64GB", "1.75GB", "1.1GB"):
        prepared = prepared_of(networks, dict(OPTIONS, memory=limit))
        fitted = fit_memory(prepared)
        passes.append(fitted.space.network.max_batch)
        metrics.append(fitted.options.measure.metric)
        assert {e.network.max_batch for e in fitted.space} == {passes[-1]}
        assert prepared.space.network.max_batch is None  # the networks that came stay as they are
        assert limit in fitted.notes[-1]
    assert passes[0] == 256
    assert metrics == ["kronecker", "kronecker", "euclidean"]
    with pytest.raises(OptionError, match="GB at least; give that"):
        fit_memory(prepared_of(networks, dict(OPTIONS, memory="500MB")))
    prepared = prepared_of([wide(0, 30), wide(1, 30)], OPTIONS)
    assert fit_memory(prepared) is prepared


def test_statistics_measured_anew_and_learned_dampings_are_reckoned_with() -> None:
    checkpoint = Checkpoint(Network(normed()).module.state_dict())
    both = {"manifold": ("digits", "digits-permuted"), "memory": "1.3GB", "metric": "euclidean"}
    most = []
    for bn in ("keep", "re-estimate"):
        prepared = prepared_of([checkpoint, checkpoint], dict(both, bn=bn, arch=normed))
        most.append(fit_memory(prepared).space.network.max_batch)
    assert most[0] > most[1]
    learned = dict(OPTIONS, memory="1.1GB", learn="damping")
    with pytest.raises(OptionError, match="GB at least; give that"):
        fit_memory(prepared_of([wide(0, 3000), wide(1, 3000)], learned))


def test_without_inputs_the_usual_sentence_comes() -> None:
    with pytest.raises(OptionError, match="`inputs`"):
        merged_of([wide(0, 30), wide(1, 30)], {"memory": "2GB"})


def test_a_merge_within_a_limit_finds_as_good_a_crossover(digits: Path) -> None:
    networks = [load_checkpoint(digits / f"{name}.pt") for name in "ab"]
    plain = {"manifold": ("digits",), "damping": 1e-5, "steps": 80}
    one = merged_of(networks, plain)
    other = merged_of(networks, dict(plain, memory="1.02GB"))
    assert other.space.network.max_batch is not None
    assert other.options.measure.metric == "kronecker"
    for name, value in one.accuracies.items():
        assert value == pytest.approx(other.accuracies[name], abs=0.02)


def test_a_metric_that_does_not_fit_is_measured_some_layers_after_the_others() -> None:
    layers = [nn.Flatten(), nn.Linear(64, 1200), nn.ReLU()]
    for _ in range(6):
        layers += [nn.Linear(1200, 1200), nn.ReLU()]

    def make() -> nn.Module:
        return nn.Sequential(*layers, nn.Linear(1200, 10))

    deep = Checkpoint(Network(make()).module.state_dict())
    prepared = prepared_of([deep, deep], dict(OPTIONS, memory="8GB", damping=1e-3, arch=make))
    found = []
    for limit in range(60, 0, -1):
        options = replace_options(prepared.options, memory=f"{limit / 20:.2f}GB")
        try:
            fitted = fit_memory(replace(prepared, options=options))
        except OptionError:
            break
        moments = fitted.space.network.max_moments
        assert {e.network.max_moments for e in fitted.space} == {moments}
        assert "GB at most" in fitted.notes[-1]
        assert ("layers after the others" in fitted.notes[-1]) == (moments is not None)
        found.append((fitted.options.measure.metric, moments is not None))
    assert list(dict.fromkeys(found)) == [
        ("kronecker", False), ("kronecker", True), ("euclidean", False)
    ]  # fmt: skip
