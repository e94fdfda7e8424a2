from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from geomerge import Checkpoint, MergeOptions, load_checkpoint, load_task, merge
from geomerge.errors import OptionError
from geomerge.evaluation.accuracy import accuracy
from geomerge.merging.prepare import prepare_sides
from geomerge.metrics import make_sketch
from geomerge.training import straight_line, train_checkpoint

TASKS = ("digits", "digits-permuted")
FAST = MergeOptions(manifold=("digits",), damping=1e-5, steps=40, align="weights")


def pair(folder: Path) -> list[Checkpoint]:
    return [load_checkpoint(folder / f"{name}.pt") for name in "ab"]


@pytest.mark.parametrize("method", ["weights", "activations"])
def test_the_path_ends_at_the_same_function(digits: Path, method: str) -> None:
    a, b = pair(digits)
    merged = merge([a, b], replace(FAST, align=method))
    network, path = merged.sides.network, merged.path
    assert torch.equal(path.at(0), network.ravel(a.weights))
    assert not torch.equal(path.at(1), network.ravel(b.weights))
    x = load_task(TASKS[1]).select.inputs.batch(slice(0, 50))
    before = network.logits(network.ravel(b.weights), x)
    end = path.checkpoint(1.0)
    assert end.weights.keys() == b.weights.keys()
    after = network.logits(network.ravel(end.weights), x)
    assert (after - before).norm() < 1e-5 * before.norm()
    found = merged.sides["b"].alignment
    assert found is not None
    assert found.method == method
    assert found.after < found.before
    assert merged.sides["a"].alignment is None
    sentence = "b was aligned with a: a permutation of its units, the same function"
    assert sentence in merged.sides.notes


def test_a_sketch_follows_its_network(digits: Path) -> None:
    a, b = pair(digits)
    side = prepare_sides([a, b], FAST)["b"]
    plain = prepare_sides([a, b], replace(FAST, align="none"))["b"]
    assert side.sketch is not None
    assert plain.sketch is not None
    assert side.alignment is not None
    inputs, seed = load_task(TASKS[1]).train.inputs, side.sketch.meta["seed"]
    anew = make_sketch(side.network, side.w, inputs, TASKS[1], seed=seed)
    torch.manual_seed(0)
    u, v = torch.randn(2, side.network.n)
    moved = side.sketch.metric.inner(side.alignment.permute(u), side.alignment.permute(v))
    assert moved == pytest.approx(plain.sketch.metric.inner(u, v), rel=1e-3)
    assert side.sketch.metric.inner(u, u) == pytest.approx(anew.metric.inner(u, u), rel=1e-3)
    assert side.sketch.metric.inner(u, u) != pytest.approx(
        plain.sketch.metric.inner(u, u), rel=0.01
    )


def test_a_walk_from_b_by_its_sketch_is_the_same_walk(digits: Path) -> None:
    # From b toward a's function, a's weights play no part: only the coordinates differ.
    values = [
        merge(pair(digits), replace(FAST, align=align)).picked.score.accuracy
        for align in ("none", "weights")
    ]
    for name in "ab":
        assert values[0][name] == pytest.approx(values[1][name], abs=0.02)


def test_the_straight_line_gets_better(digits: Path) -> None:
    best = {}
    for align in ("none", "weights"):
        sides = prepare_sides(pair(digits), replace(FAST, align=align))
        line = straight_line(sides.all[0].w, sides.all[1].w)
        splits = [load_task(name).select for name in TASKS]
        best[align] = max(min(accuracy(sides.network, w, s) for s in splits) for w in line)
    assert best["weights"] > best["none"]


@pytest.mark.parametrize("head", ["offset", "separate"])
def test_rows_of_other_heads_follow_their_own_network(digits: Path, head: str) -> None:
    a, b = pair(digits)
    options = replace(FAST, head=head, task=("b=digits-permuted",))
    sides = prepare_sides([a, b], options)
    one, two = sides.all
    matrix = {s.name: sides.network.unravel(s.w)["layers.2.weight"] for s in sides}
    assert torch.equal(matrix["a"], matrix["b"])
    assert torch.equal(matrix["a"][:10], a.weights["layers.2.weight"])
    assert torch.equal(one.checkpoint.weights["layers.2.weight"], matrix["a"])
    plain = prepare_sides([a, b], replace(options, align="none"))["b"]
    x = load_task(TASKS[1]).select.inputs.batch(slice(0, 50))
    before = plain.network.head_view(slice(10, 20)).logits(plain.w, x)
    after = two.network.head_view(slice(10, 20)).logits(two.w, x)
    assert (after - before).norm() < 1e-5 * before.norm()
    assert two.alignment is not None
    assert two.alignment.after < two.alignment.before


def test_every_network_is_aligned_with_the_first(digits: Path, tmp_path: Path) -> None:
    train_checkpoint(tmp_path / "c.pt", "lenet-300-100", load_task("digits"), epochs=2, seed=7)
    networks = [*pair(digits), load_checkpoint(tmp_path / "c.pt")]
    options = replace(FAST, manifold=("a=digits", "b=digits-permuted"))
    sides = prepare_sides(networks, options)
    for side in sides.all[1:]:
        assert side.alignment is not None
        assert side.alignment.after == pytest.approx(float((side.w - sides.all[0].w).norm()))
    assert sum("was aligned with a" in note for note in sides.notes) == 2


def test_what_cannot_be_told_is_refused(digits: Path) -> None:
    with pytest.raises(OptionError, match="unknown align 'weight'"):
        replace(FAST, align="weight")
    bare = [Checkpoint(c.weights, {}, {}, "bare.pt") for c in pair(digits)]
    with pytest.raises(OptionError, match="expected inputs of a task to align networks with"):
        prepare_sides(bare, replace(FAST, manifold=()))


def test_the_command_reports_the_alignment(
    geomerge: Callable[..., Any], digits: Path, tmp_path: Path
) -> None:
    def run(*args: str) -> Any:
        files = digits / "a.pt", digits / "b.pt"
        return geomerge("merge", *files, "--manifold", "digits", *args, cwd=tmp_path)

    done = run("--align", "weights", "--damping", "1e-5", "--steps", "40", "--out", "run")
    assert done.returncode == 0, done.stderr
    assert "b aligned with a by weights: " in done.stdout
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["recipe"]["merge"]["align"] == "weights"
    assert report["alignment"]["a"] is None
    found = report["alignment"]["b"]
    assert found["method"] == "weights"
    assert (found["groups"], found["units"]) == (2, 400)
    assert 0 < found["moved"] <= 400
    assert found["distance_after"] < found["distance_before"]
    wrong = run("--align", "weigths", "--out", "other")
    assert wrong.returncode == 2
    assert "did you mean 'weights'" in wrong.stderr
    assert "Traceback" not in wrong.stderr
    assert not (tmp_path / "other").exists()
