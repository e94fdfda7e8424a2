from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from merges import merged_of, prepared_of, split_options

from geomerge import Checkpoint, load_checkpoint, load_task
from geomerge.errors import OptionError
from geomerge.evaluation.accuracy import accuracy
from geomerge.metrics import make_sketch
from geomerge.training import straight_line, train_checkpoint

TASKS = ("digits", "digits-permuted")
FAST = {"manifold": ("digits",), "damping": 1e-5, "steps": 40, "align": "weights"}


def pair(folder: Path) -> list[Checkpoint]:
    return [load_checkpoint(folder / f"{name}.pt") for name in "ab"]


@pytest.mark.parametrize("method", ["weights", "activations"])
def test_the_path_ends_at_the_same_function(digits: Path, method: str) -> None:
    a, b = pair(digits)
    merged = merged_of([a, b], dict(FAST, align=method))
    network, path = merged.space.network, merged.path
    assert torch.equal(path.at(0), network.ravel(a.weights))
    assert not torch.equal(path.at(1), network.ravel(b.weights))
    x = load_task(TASKS[1]).select.inputs.batch(slice(0, 50))
    before = network.logits(network.ravel(b.weights), x)
    end = path.checkpoint(1.0)
    assert end.weights.keys() == b.weights.keys()
    after = network.logits(network.ravel(end.weights), x)
    assert (after - before).norm() < 1e-5 * before.norm()
    alignments = merged.preset.prepared.alignments
    assert set(alignments) == {"b"}
    found = alignments["b"]
    assert found.method == method
    assert found.after < found.before
    sentence = "b was aligned with a: a permutation of its units, the same function"
    assert sentence in merged.notes


def test_a_sketch_follows_its_network(digits: Path) -> None:
    a, b = pair(digits)
    prepared = prepared_of([a, b], FAST)
    expert, alignment = prepared.space["b"], prepared.alignments["b"]
    plain = prepared_of([a, b], dict(FAST, align="none")).space["b"]
    assert expert.sketch is not None
    assert plain.sketch is not None
    inputs, seed = load_task(TASKS[1]).train.inputs, expert.sketch.meta["seed"]
    anew = make_sketch(expert.network, expert.weights, inputs, TASKS[1], seed=seed)
    torch.manual_seed(0)
    u, v = torch.randn(2, expert.network.n)
    moved = expert.sketch.metric.inner(alignment.permute(u), alignment.permute(v))
    assert moved == pytest.approx(plain.sketch.metric.inner(u, v), rel=1e-3)
    assert expert.sketch.metric.inner(u, u) == pytest.approx(anew.metric.inner(u, u), rel=1e-3)
    assert expert.sketch.metric.inner(u, u) != pytest.approx(
        plain.sketch.metric.inner(u, u), rel=0.01
    )


def test_a_walk_from_b_by_its_sketch_is_the_same_walk(digits: Path) -> None:
    # From b toward a's function, a's weights play no part: only the coordinates differ.
    values = [
        merged_of(pair(digits), dict(FAST, align=align)).picked.score.accuracy
        for align in ("none", "weights")
    ]
    for name in "ab":
        assert values[0][name] == pytest.approx(values[1][name], abs=0.02)


def test_the_straight_line_gets_better(digits: Path) -> None:
    best = {}
    for align in ("none", "weights"):
        space = prepared_of(pair(digits), dict(FAST, align=align)).space
        line = straight_line(*(expert.weights for expert in space))
        splits = [load_task(name).select for name in TASKS]
        best[align] = max(min(accuracy(space.network, w, s) for s in splits) for w in line)
    assert best["weights"] > best["none"]


@pytest.mark.parametrize("head", ["offset", "separate"])
def test_rows_of_other_heads_follow_their_own_network(digits: Path, head: str) -> None:
    a, b = pair(digits)
    options = dict(FAST, head=head, task=("b=digits-permuted",))
    prepared = prepared_of([a, b], options)
    space = prepared.space
    one, two = space
    matrix = {e.name: space.network.unravel(e.weights)["layers.2.weight"] for e in space}
    assert torch.equal(matrix["a"], matrix["b"])
    assert torch.equal(matrix["a"][:10], a.weights["layers.2.weight"])
    assert torch.equal(prepared.checkpoint(one).weights["layers.2.weight"], matrix["a"])
    plain = prepared_of([a, b], dict(options, align="none")).space["b"]
    x = load_task(TASKS[1]).select.inputs.batch(slice(0, 50))
    before = plain.network.head_view(slice(10, 20)).logits(plain.weights, x)
    after = two.network.head_view(slice(10, 20)).logits(two.weights, x)
    assert (after - before).norm() < 1e-5 * before.norm()
    assert prepared.alignments["b"].after < prepared.alignments["b"].before


def test_every_network_is_aligned_with_the_first(digits: Path, tmp_path: Path) -> None:
    train_checkpoint(tmp_path / "c.pt", "lenet-300-100", load_task("digits"), epochs=2, seed=7)
    networks = [*pair(digits), load_checkpoint(tmp_path / "c.pt")]
    options = dict(FAST, manifold=("a=digits", "b=digits-permuted"))
    prepared = prepared_of(networks, options)
    first, *others = prepared.space
    for expert in others:
        apart = float((expert.weights - first.weights).norm())
        assert prepared.alignments[expert.name].after == pytest.approx(apart)
    assert sum("was aligned with a" in note for note in prepared.notes) == 2


def test_what_cannot_be_told_is_refused(digits: Path) -> None:
    with pytest.raises(OptionError, match="unknown align 'weight'"):
        split_options(dict(FAST, align="weight"))
    known = {"architecture": "mlp"}
    bare = [Checkpoint(c.weights, known, {}, "bare.pt") for c in pair(digits)]
    with pytest.raises(OptionError, match="expected inputs of a task to align networks with"):
        prepared_of(bare, dict(FAST, manifold=()))


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
