"""What a report shows beside its table: curve, layers, answers, the plane of the losses."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from merges import merged_of

from geomerge import load_checkpoint
from geomerge.evaluation.accuracy import accuracy, right_by_class
from geomerge.merging import MergeResult, curves, look_at
from geomerge.merging.plane import plane_of, spanned

OPTIONS = {"manifold": ("digits",), "damping": 1e-5, "steps": 30, "points": 12}


@pytest.fixture(scope="module")
def merged(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> MergeResult:
    networks = [load_checkpoint(digits / f"{name}.pt") for name in "ab"]
    return merged_of(networks, OPTIONS, folder=tmp_path_factory.mktemp("path"))


def test_classes_of_a_point_add_up_to_its_accuracy(merged: MergeResult) -> None:
    points = curves(merged)
    assert [p.t for p in points] == sorted({p.t for p in points})
    assert {0.0, merged.t, 1.0} <= {p.t for p in points}
    for expert in merged.space:
        assert expert.task is not None
        labels = expert.task.select.labels
        for point in points:
            shares = point.classes[expert.name]
            right = sum(share * int((labels == int(k)).sum()) for k, share in shares.items())
            assert point.accuracy[expert.name] == pytest.approx(right / len(labels))
            w = merged.path.at(point.t)
            assert point.accuracy[expert.name] == accuracy(expert.network, w, expert.task.select)


def test_drift_is_nothing_at_its_own_network_and_predicted_near_it(merged: MergeResult) -> None:
    points = curves(merged)
    for expert, point in ((merged.space["a"], points[0]), (merged.space["b"], points[-1])):
        assert point.distance[expert.name] == 0
        assert point.measured[expert.name] == pytest.approx(0, abs=1e-9)
        assert point.predicted[expert.name] == pytest.approx(0, abs=1e-9)
    near, far = points[-2], points[0]
    assert 0 < (near.measured["b"] or 0) < (far.measured["b"] or 0)
    assert 0 < (near.predicted["b"] or 0) < (far.predicted["b"] or 0)


def test_layers_make_up_the_whole_distance(merged: MergeResult) -> None:
    layers = look_at(merged).layers
    assert sum(layer.weights for layer in layers) == merged.space.network.n
    for expert in merged.space:
        whole = math.sqrt(sum(layer.distance[expert.name] ** 2 for layer in layers))
        assert whole == pytest.approx(float((merged.w - expert.weights).norm()), rel=1e-5)


def test_answers_are_counted_against_the_networks_own(merged: MergeResult) -> None:
    for name, found in look_at(merged).answers.items():
        expert = merged.space[name]
        assert expert.task is not None
        test = expert.task.test
        assert found.kept + found.lost + found.gained + found.wrong == found.of == len(test.labels)
        before, after = (accuracy(expert.network, w, test) for w in (expert.weights, merged.w))
        assert (found.kept + found.lost) / found.of == pytest.approx(before)
        assert (found.kept + found.gained) / found.of == pytest.approx(after)
        assert len(found.shown) <= 12
        for one in found.shown:
            assert one.label == int(test.labels[one.index])
            assert (one.before == one.label) != (one.after == one.label)
            x = test.inputs.batch(slice(one.index, one.index + 1))
            assert int(expert.network.logits(merged.w, x).argmax()) == one.after
            assert one.image is not None
            assert one.image.dtype == torch.uint8
            assert one.image.shape == (8, 8)


def test_the_plane_holds_the_ends_and_the_crossover(merged: MergeResult) -> None:
    plane = plane_of(merged)
    assert plane is not None
    first, last = merged.space["a"].weights, merged.space["b"].weights
    apart = float((last - first).norm())
    (ax, ay), (bx, by) = plane.marks["a"], plane.marks["b"]
    assert math.hypot(ax, ay) < 1e-4 * apart
    assert bx == pytest.approx(apart, rel=1e-4)
    assert abs(by) < 1e-4 * apart
    at = next(point for point in plane.path if point["t"] == merged.t)
    assert at["off"] < 1e-3 * apart  # as the two ends it lies in the plane
    assert (at["x"], at["y"]) == pytest.approx(plane.marks["crossover"], abs=1e-3 * apart)
    for point in plane.path:  # a right angle: what is in the plane and what is off it
        w = merged.path.at(point["t"])
        legs = math.hypot(point["x"], point["y"], point["off"])
        assert legs == pytest.approx(float((w - first).norm()), abs=1e-3 * apart)


def test_losses_of_the_plane_are_the_networks_own(merged: MergeResult) -> None:
    plane = plane_of(merged)
    assert plane is not None
    for name, rows in plane.losses.items():
        assert len(rows) == len(plane.ys)
        assert all(len(row) == len(plane.xs) for row in rows)
        x, y = plane.marks[name]
        i = min(range(len(plane.xs)), key=lambda k: abs(plane.xs[k] - x))
        j = min(range(len(plane.ys)), key=lambda k: abs(plane.ys[k] - y))
        lowest = min(map(min, rows))
        highest = max(map(max, rows))
        assert rows[j][i] < lowest + 0.25 * (highest - lowest)  # a network is in its own valley


@pytest.mark.parametrize("share", [1.0, 0.37])
def test_a_crossover_on_the_line_spans_no_plane_in_large_networks(share: float) -> None:
    torch.manual_seed(0)
    line = torch.randn(2_000_000)
    assert spanned(line, share * line) is None
    axes = spanned(line, share * line + 0.01 * torch.randn(2_000_000))
    assert axes is not None
    assert torch.allclose(axes @ axes.T, torch.eye(2), atol=1e-4)


def test_outputs_of_another_task_have_no_class_number(digits: Path, tmp_path: Path) -> None:
    networks = [load_checkpoint(digits / f"{name}.pt") for name in "ab"]
    options = dict(OPTIONS, manifold=("digits",), head="offset", steps=3)
    found = look_at(merged_of(networks, options, folder=tmp_path)).answers
    said = [one.after for answers in found.values() for one in answers.shown]
    assert said
    assert all(one is None or 0 <= one < 10 for one in said)


def test_three_points_on_a_line_have_no_plane(digits: Path, tmp_path: Path) -> None:
    a = load_checkpoint(digits / "a.pt")
    same = merged_of([a, a], dict(OPTIONS, manifold=("a=digits",), steps=3), folder=tmp_path)
    assert plane_of(same) is None


def test_right_by_class_counts_each_example_once(merged: MergeResult) -> None:
    expert = merged.space["a"]
    assert expert.task is not None
    split = expert.task.test
    right, of = right_by_class(lambda x: expert.network.logits(expert.weights, x), split, batch=7)
    assert int(of.sum()) == len(split.labels)
    assert bool((right <= of).all())
    assert int(right.sum()) / int(of.sum()) == accuracy(expert.network, expert.weights, split)
