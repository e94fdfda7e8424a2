"""Walks on the inputs of all networks, more than two networks, heads, budgets, learned damping."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from merges import merged_of, prepared_of, run_of

from geomerge import Checkpoint, Network, load_checkpoint, load_task
from geomerge.errors import CheckpointError, OptionError
from geomerge.evaluation.accuracy import accuracy
from geomerge.evaluation.evaluate import evaluate
from geomerge.expert import Expert
from geomerge.merging.choice import choose_preset
from geomerge.merging.heads import arrange_heads, widen_metric
from geomerge.metrics import measure_metric
from geomerge.networks.architectures import create_network
from geomerge.training import train_checkpoint
from geomerge.walks.state import WalkState

TASKS = ("digits", "digits-permuted")
JOINT = {"manifold": TASKS}
SKETCH = {"manifold": ("digits",), "damping": 1e-5}


def pair(folder: Path) -> list[Checkpoint]:
    return [load_checkpoint(folder / f"{name}.pt") for name in "ab"]


def smallest(found: dict[str, float | None]) -> float:
    return min(v or 0.0 for v in found.values())


@pytest.fixture(scope="module")
def third(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A network for some of the digits, upside down."""
    file = tmp_path_factory.mktemp("third") / "c.pt"
    data = load_task("digits")
    turned = {
        part: (torch.rot90(s.inputs.raw, 2, (2, 3)), s.labels)
        for part, s in (("train", data.train), ("test", data.test))
    }
    from geomerge.data import make_task

    task = make_task("digits-turned", turned["train"], turned["test"], data.normalisation)
    train_checkpoint(file, "lenet-300-100", task, epochs=20, learning_rate=0.02, seed=2)
    return load_checkpoint(file)


def test_inputs_of_all_tasks_take_the_joint_preset(digits: Path) -> None:
    merged = merged_of(pair(digits), JOINT)
    assert merged.preset.name == "joint"
    tasks = [load_task(name) for name in TASKS]
    network = merged.space.network
    experts = [
        accuracy(network, s.weights, t.test) for s, t in zip(merged.space, tasks, strict=True)
    ]
    found = [accuracy(network, merged.w, t.test) for t in tasks]
    assert max(e - f for e, f in zip(experts, found, strict=True)) < 0.05
    assert torch.equal(merged.path.at(0), merged.space["a"].weights)
    assert torch.equal(merged.path.at(1), merged.space["b"].weights)
    assert torch.equal(merged.path.at(merged.t), merged.w)
    assert 0 < merged.t < 1


@pytest.mark.slow
def test_the_joint_walk_beats_two_teacher_distillation_at_equal_samples(digits: Path) -> None:
    short = dict(JOINT, steps=40)
    kronecker = merged_of(pair(digits), short).accuracies
    euclidean = merged_of(pair(digits), dict(short, metric="euclidean")).accuracies
    assert smallest(kronecker) > smallest(euclidean)


def test_the_gram_metric_merges_too(digits: Path) -> None:
    merged = merged_of(pair(digits), dict(JOINT, metric="gram", steps=12, damping=1e-2))
    assert smallest(merged.accuracies) > 0.6


def test_the_exact_metric_walks_too(digits: Path) -> None:
    options = dict(JOINT, metric="exact", steps=5)
    preset = choose_preset(prepared_of(pair(digits), options))
    walk = preset.stage_walk(preset.stages[0], preset.space.middle())
    points = list(walk(1e-2, WalkState()).points)
    assert len(points) == 10
    assert points[8].distance < 0.97 * points[0].distance


@pytest.mark.parametrize("order", ["abc", pytest.param("cab", marks=pytest.mark.slow)])
def test_three_networks_become_one(digits: Path, third: Checkpoint, order: str) -> None:
    a, b = pair(digits)
    given = {"a": a, "b": b, "c": third}
    options = {"manifold": TASKS if order == "abc" else ("digits",), "steps": 60}
    networks = [given[k] for k in order]
    if order == "cab":  # c and b bring no inputs
        preset = choose_preset(prepared_of(networks, options))
        assert preset.name == "sketches"
        assert any("no common base" in note for note in preset.prepared.notes)
        return
    merged = merged_of(networks, options)
    assert merged.preset.name == "sketch"
    assert [[s.name for s in stage.kept] for stage in merged.preset.stages] == [["c"], ["c", "b"]]
    assert merged.path.ends == ("a", "c")
    network, found = merged.space.network, merged.picked.score.accuracy
    assert set(found) == {"a", "b", "c"}
    assert found["c"] is None  # its task has no name that could be loaded
    for name in TASKS:
        assert accuracy(network, merged.w, load_task(name).test) > 0.75
    assert (found["a"] or 0) > 0.75


@pytest.mark.parametrize("head", ["offset", "separate"])
def test_heads_with_room_for_both_tasks(digits: Path, tmp_path: Path, head: str) -> None:
    options = dict(JOINT, head=head, pick="balanced", steps=25)
    folder, report, _ = run_of([digits / "a.pt", digits / "b.pt"], options, out=tmp_path / "run")
    assert report["head"]["protocol"] == head
    merged = load_checkpoint(folder / "merged.safetensors")
    assert merged.weights["layers.2.weight"].shape[0] == 20
    assert min(report["results"][-1]["test"].values()) > 0.85
    rows = evaluate(folder / "merged.safetensors", TASKS)["tasks"]
    assert [row["accuracy"] for row in rows] == list(report["results"][-1]["test"].values())
    experts = {row["name"]: row["test"] for row in report["results"]}
    alone = evaluate(digits / "b.pt", ["digits-permuted"])["tasks"][0]["accuracy"]
    assert experts["b"]["b"] == pytest.approx(alone, abs=0.02)


def test_a_sketch_is_carried_over_to_a_wider_head(digits: Path) -> None:
    merged = merged_of(pair(digits), dict(SKETCH, head="offset", steps=60))
    assert merged.preset.name == "sketch"
    assert smallest(merged.accuracies) > 0.5  # no data of b, and its classes are not known


def test_heads_of_different_sizes_need_a_protocol(digits: Path, tmp_path: Path) -> None:
    train_checkpoint(
        tmp_path / "few.pt", "lenet-300-100", load_task("digits@0-4"), epochs=3, learning_rate=0.02
    )
    networks = [load_checkpoint(digits / "b.pt"), load_checkpoint(tmp_path / "few.pt")]
    options = {"manifold": ("digits-permuted", "digits@0-4"), "steps": 40}
    with pytest.raises(CheckpointError, match="`head` offset or `head` separate"):
        merged_of(networks, options)
    merged = merged_of(networks, dict(options, head="separate"))
    assert [s.network.columns for s in merged.space] == [slice(0, 10), slice(10, 15)]
    assert smallest(merged.accuracies) > 0.6


def test_a_widened_metric_is_the_old_one_on_the_old_outputs() -> None:
    module = create_network("lenet-300-100", (1, 3, 3), 4, seed=0)
    narrow = Network(module)
    a, b = (Expert(name, narrow, narrow.initial * k) for name, k in (("a", 1), ("b", 2)))
    wide, heads, (wide_a, _) = arrange_heads([a, b], "offset")
    x = torch.rand(50, 1, 3, 3)
    from geomerge.data import Inputs, Normalisation

    inputs = Inputs(x, Normalisation((0.0,), (1.0,)))
    metric = measure_metric(narrow, narrow.initial, inputs, output="logits")
    widened = widen_metric(metric, narrow, wide, heads, "a")
    move = torch.zeros(wide.n)
    for name, part in wide.unravel(move).items():
        part[tuple(slice(0, n) for n in narrow.shapes[name])] = 1.0
    old = torch.ones(narrow.n)
    assert widened.inner(move, move) == pytest.approx(metric.inner(old, old), rel=1e-4)
    unused = wide.unravel(torch.zeros(wide.n))
    flat = torch.zeros(wide.n)
    wide.unravel(flat)["layers.2.bias"][5] = 1.0
    assert widened.inner(flat, flat) > 0
    parts = wide.unravel(wide_a)
    assert parts["layers.2.weight"].shape == unused["layers.2.weight"].shape == (8, 100)


@pytest.mark.slow
def test_budgets_are_kept_and_priced(digits: Path, tmp_path: Path) -> None:
    files = [digits / "a.pt", digits / "b.pt"]
    options = dict(SKETCH, damping=1e-3, pick="a>=0.5", budget=("b=0.002",), steps=80)
    _, report, _ = run_of(files, options, out=tmp_path / "run")
    (stage,) = report["stages"]
    budgets = stage["budgets"]
    assert budgets["programs_solved"] > 0
    assert budgets["shadow_prices"]["b"]["largest"] > 0
    merged = merged_of(pair(digits), options)
    b = merged.space["b"]
    assert b.sketch is not None
    gap = merged.w - b.weights
    assert b.sketch.metric.inner(gap, gap) <= 0.002 * (1 + 1e-4)


def test_budgets_with_inputs_bound_the_loss_of_each_class(digits: Path) -> None:
    options = dict(JOINT, steps=12, budget=("b/*=0.5", "a=0.1"))
    merged = merged_of(pair(digits), options)
    budgets = merged.picked.budgets
    assert budgets is not None
    assert {name.partition("/")[0] for name in budgets.limits} == {"a", "b"}
    assert len(budgets.limits) == 11
    assert budgets.within(merged.w)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"budget": ("b",)}, "expected `budget` NETWORK=NUMBER"),
        ({"budget": ("b=1", "b=2")}, "once for each"),
        ({"budget": ("d=0.1",)}, "names network 'd'"),
        ({"budget": ("b/3=0.1",)}, "needs inputs of b's task"),
        ({"sketch": ("b.pt",)}, "one `sketch` for each network"),
        ({"task": ("z=digits",)}, "names network 'z'"),
        ({"bn": "re-estimates"}, "did you mean 're-estimate'"),
        ({"head": "offsets"}, "did you mean 'offset'"),
        ({"learn": "damping", "metric": "euclidean"}, "leave one of the two out"),
        ({"preset": "joint"}, "needs inputs of every network's task, and there are none for b"),
        ({"metric": "exact"}, "needs inputs of b"),
        ({"manifold": ("digits", "digits", "digits")}, "at most 2 manifolds"),
    ],
)
def test_what_cannot_be_done_is_said(digits: Path, wrong: dict[str, object], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        merged_of(pair(digits), dict(SKETCH, **wrong))  # type: ignore[arg-type]


@pytest.mark.slow
def test_damping_is_learned_from_far_below(digits: Path) -> None:
    learned = merged_of(pair(digits), dict(SKETCH, damping=1e-8, learn="damping"))
    fixed = merged_of(pair(digits), dict(SKETCH, damping=1e-8))
    dampings = [s.damping for s in learned.path.steps if s.leg == "b"]
    assert dampings[-1] is not None
    assert dampings[-1] > 30 * 1e-8
    assert smallest(learned.accuracies) > smallest(fixed.accuracies)


@pytest.mark.slow
def test_a_relaxed_path_has_less_energy_and_the_same_crossover(digits: Path) -> None:
    merged = merged_of(pair(digits), dict(JOINT, steps=60, relax=True))
    plain = merged_of(pair(digits), dict(JOINT, steps=60))
    assert {r.leg for r in merged.relaxed} == {"a", "b"}
    for found in merged.relaxed:
        assert found.after.energy <= found.before.energy
        assert (found.worst_after or 0) >= (found.worst_before or 0)
        assert found.after.length <= found.after.energy**0.5 * (1 + 1e-9)
    assert any(r.share > 0 for r in merged.relaxed)
    assert torch.equal(merged.w, plain.w)
    assert torch.equal(merged.path.at(0), merged.space["a"].weights)
    assert torch.equal(merged.path.at(1), merged.space["b"].weights)
    assert torch.equal(merged.path.at(merged.t), merged.w)
    assert sum(merged.path.lengths.values()) < sum(plain.path.lengths.values())


def test_batch_norm_follows_the_stated_policy(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bnnet.py").write_text(
        "from torch import nn\n"
        "def make():\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, 60), nn.BatchNorm1d(60), nn.ReLU(),\n"
        "        nn.Linear(60, 60), nn.BatchNorm1d(60), nn.ReLU(), nn.Linear(60, 10))\n"
    )
    for k, (name, task) in enumerate(zip("ab", TASKS, strict=True)):
        train_checkpoint(
            tmp_path / f"{name}.pt", "bnnet:make", load_task(task), epochs=15,
            learning_rate=0.02, seed=k,
        )  # fmt: skip
    networks = pair(tmp_path)
    anew = merged_of(networks, dict(JOINT, steps=25))
    assert anew.space.bn == "re-estimate"
    kept = merged_of(networks, dict(JOINT, steps=5, bn="keep"))
    assert kept.space.bn == "keep"
    assert smallest(anew.accuracies) > 0.85
    names = [k for k in anew.space.network.shapes if "running" in k]
    mean = kept.space.middle()
    unravel = kept.space.network.unravel
    assert all(torch.allclose(unravel(kept.w)[k], unravel(mean)[k], atol=1e-5) for k in names)
    assert not any(torch.allclose(unravel(anew.w)[k], unravel(mean)[k], atol=1e-5) for k in names)
    blind = merged_of(networks, dict(SKETCH, steps=5))
    assert blind.space.bn == "keep"
    with pytest.raises(OptionError, match="`bn` re-estimate needs inputs of every"):
        merged_of(networks, dict(SKETCH, bn="re-estimate"))


def test_heads_ask_for_equal_bodies(digits: Path) -> None:
    a, b = pair(digits)
    first = {k: v for k, v in b.weights.items() if "layers.0" in k}
    head = {"layers.1.weight": torch.zeros(10, 300), "layers.1.bias": torch.zeros(10)}
    shallow = Checkpoint({**first, **head}, {}, {}, "shallow.pt")
    with pytest.raises(CheckpointError, match="differ in the number of outputs only"):
        merged_of([a, shallow], dict(JOINT, head="offset", arch="mlp"))
    with pytest.raises(OptionError, match="two networks are for digits"):
        merged_of([a, a], {"manifold": ("digits", "digits"), "head": "separate"})


@pytest.mark.slow
def test_what_was_learned_and_bound_is_reported_for_joint_walks_too(
    digits: Path, tmp_path: Path
) -> None:
    options = dict(JOINT, steps=10, learn="damping", budget=("b/3=0.5",), head="offset")
    _, report, _ = run_of([digits / "a.pt", digits / "b.pt"], options, out=tmp_path / "run")
    (stage,) = report["stages"]
    assert stage["damping"]["last"] != stage["damping"]["first"]
    assert stage["budgets"]["steps"] == 20
    assert set(stage["budgets"]["limits"]) == {"b/3"}
    assert report["results"][-2]["name"].startswith("fixed damping")


def test_a_relaxed_path_of_few_points_is_what_was_measured(digits: Path) -> None:
    merged = merged_of(pair(digits), dict(JOINT, steps=8, relax=True, points=8))
    assert len(merged.path.ts) <= 8
    total = sum(merged.path.lengths.values())
    measured = {r.leg: r.after.length for r in merged.relaxed if r.share > 0}
    for leg, length in measured.items():
        assert merged.path.lengths[leg] == pytest.approx(length, rel=1e-6)
    assert 0 < merged.t < 1
    assert total > 0


def test_learning_needs_a_walk_toward_functions(digits: Path) -> None:
    a, b = pair(digits)
    known = {"architecture": "lenet-300-100"}
    with pytest.raises(OptionError, match="`learn` damping needs a walk toward functions"):
        merged_of(
            [a, replace(b, meta=known, sketch={})], dict(SKETCH, preset="paper", learn="damping")
        )


@pytest.mark.parametrize(
    "options", [JOINT, dict(JOINT, metric="euclidean"), dict(SKETCH, preset="paper")]
)
def test_common_zeros_stay_zero_along_the_whole_path(digits: Path, options: dict[str, Any]) -> None:
    networks = [
        replace(c, sketch={}, meta={k: v for k, v in c.meta.items() if k != "sketch"})
        for c in pair(digits)
    ]
    mask = torch.rand(300, 64, generator=torch.Generator().manual_seed(0)) < 0.5
    for network in networks:
        network.weights["layers.0.weight"][mask] = 0.0
    options = dict(options, keep_zeros=True, steps=8, damping=1e-4)
    merged = merged_of(networks, options)
    for t in (*merged.path.ts, 0.37):
        first = merged.path.network.unravel(merged.path.at(t))["layers.0.weight"]
        assert (first[mask] == 0).all()
        assert (first[~mask] != 0).any()
    moved = merged_of(networks, dict(options, keep_zeros=False, steps=3))
    first = moved.path.network.unravel(moved.w)["layers.0.weight"]
    assert not (first[mask] == 0).all()
