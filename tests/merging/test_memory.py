from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from merges import merged_of, prepared_of
from torch import nn

from geomerge import Checkpoint, Network, load_checkpoint
from geomerge.errors import OptionError
from geomerge.io import paged
from geomerge.merging import choice, resident
from geomerge.merging.memory import fit_memory
from geomerge.merging.prepare import PreparedMerge
from geomerge.metrics.kronecker import forms
from geomerge.metrics.kronecker.forms import held_bytes
from geomerge.networks.factor_form import FactorForm
from geomerge.options import replace_options
from geomerge.walks.objectives import divergence

OPTIONS = {"manifold": ("digits",), "task": ("a=digits", "b=digits-permuted")}


@pytest.fixture
def usual(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the process hold 900 MB, whatever the tests before this one have loaded."""
    monkeypatch.setattr(resident, "base_bytes", lambda: 900_000_000)


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


@pytest.mark.usefixtures("usual")
def test_less_memory_means_smaller_passes_and_too_little_a_refusal() -> None:
    passes, metrics = [], []
    networks = [wide(0, 3000), wide(1, 3000)]
    for limit in ("64GB", "1.75GB", "1.03GB"):
        prepared = prepared_of(networks, dict(OPTIONS, memory=limit))
        fitted = fit_memory(prepared)
        passes.append(fitted.space.network.max_batch)
        metrics.append(fitted.options.measure.metric)
        assert {e.network.max_batch for e in fitted.space} == {passes[-1]}
        assert prepared.space.network.max_batch is None  # the networks that came stay as they are
        assert limit in fitted.notes[-1]
    assert passes[0] == 256
    assert metrics == ["kronecker"] * 3
    with pytest.raises(OptionError, match="GB at least; give that"):
        fit_memory(prepared_of(networks, dict(OPTIONS, memory="500MB")))
    prepared = prepared_of([wide(0, 30), wide(1, 30)], OPTIONS)
    assert fit_memory(prepared) is prepared


@pytest.mark.usefixtures("usual")
def test_statistics_measured_anew_and_learned_dampings_are_reckoned_with() -> None:
    checkpoint = Checkpoint(Network(normed()).module.state_dict())
    both = {"manifold": ("digits", "digits-permuted"), "memory": "1.3GB", "metric": "euclidean"}
    most = []
    for bn in ("keep", "re-estimate"):
        prepared = prepared_of([checkpoint, checkpoint], dict(both, bn=bn, arch=normed))
        most.append(fit_memory(prepared).space.network.max_batch)
    assert most[0] > most[1]
    learned = dict(OPTIONS, memory="0.9GB", learn="damping")
    with pytest.raises(OptionError, match="GB at least; give that"):
        fit_memory(prepared_of([wide(0, 3000), wide(1, 3000)], learned))


def test_without_inputs_the_usual_sentence_comes() -> None:
    with pytest.raises(OptionError, match="`inputs`"):
        merged_of([wide(0, 30), wide(1, 30)], {"memory": "2GB"})


@pytest.mark.usefixtures("usual")
def test_a_merge_within_a_limit_finds_as_good_a_crossover(digits: Path) -> None:
    networks = [load_checkpoint(digits / f"{name}.pt") for name in "ab"]
    plain = {"manifold": ("digits",), "damping": 1e-5, "steps": 80}
    one = merged_of(networks, plain)
    other = merged_of(networks, dict(plain, memory="1.02GB"))
    assert other.space.network.max_batch is not None
    assert other.options.measure.metric == "kronecker"
    for name, value in one.accuracies.items():
        assert value == pytest.approx(other.accuracies[name], abs=0.02)


@pytest.mark.usefixtures("usual")
def test_less_memory_takes_the_next_form_of_the_metric_and_never_an_earlier_one() -> None:
    layers = [nn.Flatten(), nn.Linear(64, 1000), nn.ReLU()]
    for _ in range(6):
        layers += [nn.Linear(1000, 1000), nn.ReLU()]

    def make() -> nn.Module:
        return nn.Sequential(*layers, nn.Linear(1000, 10))

    deep = Checkpoint(Network(make()).module.state_dict())
    prepared = prepared_of([deep, deep], dict(OPTIONS, memory="8GB", damping=1e-3, arch=make))
    found = []
    for limit in range(2000, 0, -5):
        options = replace_options(prepared.options, memory=f"{limit}MB")
        try:
            fitted = fit_memory(replace(prepared, options=options))
        except OptionError:
            break
        network, note = fitted.space.network, fitted.notes[-1]
        assert {(e.network.max_moments, e.network.factor_form) for e in fitted.space} == {
            (network.max_moments, network.factor_form)
        }
        assert float(note.partition(" GB at most")[0].rpartition(" ")[2]) <= limit / 1e3 + 0.005
        assert ("layers after the others" in note) == (network.max_moments is not None)
        assert ("as usual would need" in note) == (network.factor_form is not FactorForm.WHOLE)
        assert ("bfloat16" in note) == (network.factor_form in (FactorForm.HALF, FactorForm.FILES))
        assert fitted.options.measure.metric == "kronecker"
        found.append((network.factor_form, network.max_moments is not None))
    taken = list(dict.fromkeys(found))
    assert taken == sorted(taken)
    assert [form for form, _ in taken[1:]] == [*FactorForm][: len(taken) - 1]
    assert taken[0] == (FactorForm.WHOLE, False)
    assert taken[-1][0] >= FactorForm.BLOCKS


def test_without_room_on_a_disk_no_form_in_files_is_smaller(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cpu = torch.device("cpu")
    assert held_bytes([1000], FactorForm.WHOLE, cpu) == 4_000_000
    assert held_bytes([1000], FactorForm.FILES, torch.device("meta")) == 2_000_000
    monkeypatch.setattr(paged, "has_room", lambda nbytes: False)
    assert held_bytes([1000], FactorForm.FILES, cpu) == 2_000_000
    assert held_bytes([250] * 4, FactorForm.BLOCKS, cpu) == 500_000
    assert held_bytes([1000], FactorForm.DIAGONAL, cpu) == 4000


@pytest.mark.slow  # whole merges
@pytest.mark.parametrize("form", [FactorForm.HALF, FactorForm.BLOCKS, FactorForm.DIAGONAL])
def test_a_merge_in_every_form_reaches_a_crossover(
    digits: Path, form: FactorForm, monkeypatch: pytest.MonkeyPatch
) -> None:
    networks = [load_checkpoint(digits / f"{name}.pt") for name in "ab"]
    monkeypatch.setattr(forms, "_WIDE", 32)

    def limited(prepared: PreparedMerge, work: Path | None) -> PreparedMerge:
        return replace(prepared, space=prepared.space.limited(64, 10**7, form))

    monkeypatch.setattr(choice, "fit_memory", limited)
    merged = merged_of(networks, {"manifold": ("digits",), "damping": 1e-5, "steps": 40})
    assert merged.space.network.factor_form is form
    assert min(value for value in merged.accuracies.values() if value is not None) > 0.5


def test_what_the_process_holds_is_measured_and_kept_for_a_resumed_run(tmp_path: Path) -> None:
    before = resident.base_bytes()
    held = torch.ones(2**26)  # 268 MB
    assert 200e6 < resident.base_bytes() - before < 400e6
    del held
    work = tmp_path / "run" / "work"
    known = resident.base_of_run(work)
    assert not work.exists()  # nothing was planned yet
    resident.keep_base(work, known - 10**8)
    assert resident.base_of_run(work) == known - 10**8
    assert resident.base_of_run(None) > known - 10**8


def test_libraries_that_are_yet_to_come_are_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in resident._LATER:
        monkeypatch.setitem(sys.modules, name, sys)
    fewer = resident.base_bytes()
    monkeypatch.delitem(sys.modules, "torch._dynamo")
    assert 100e6 <= resident.base_bytes() - fewer <= 200e6


def test_a_resumed_merge_is_planned_as_the_interrupted_one_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    networks, limited = [wide(0, 600), wide(1, 600)], dict(OPTIONS, memory="1.17GB")
    most = []
    for base in (10**9, 1_150_000_000):  # the second process has loaded more
        monkeypatch.setattr(resident, "base_bytes", lambda base=base: base)
        fitted = fit_memory(prepared_of(networks, limited), tmp_path)
        most.append(fitted.space.network.max_batch)
    assert most[0] == most[1]
    assert fit_memory(prepared_of(networks, limited)).space.network.max_batch != most[0]
