from __future__ import annotations

from collections.abc import Iterator
from itertools import islice, pairwise
from pathlib import Path

import pytest
import torch
from torch import nn

from geomerge import Checkpoint, Network, WeightPath
from geomerge.errors import OptionError, RunError
from geomerge.metrics import EuclideanMetric
from geomerge.paths.leg import Leg, points_stored, record_leg
from geomerge.walks.state import StateFile
from geomerge.walks.walk import WalkPoint, walk_straight


def networks() -> tuple[Network, Checkpoint, Checkpoint]:
    torch.manual_seed(0)
    network = Network(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)))
    known = {"architecture": "mlp"}
    a = Checkpoint(network.state_dict(network.initial), known)
    b = Checkpoint(network.state_dict(network.initial + torch.randn(network.n)), known)
    return network, a, b


def straight_leg(
    folder: Path, name: str, start: torch.Tensor, end: torch.Tensor, points: int = 64
) -> Leg:
    walk = walk_straight(start, end, EuclideanMetric(), 40)
    return record_leg(folder, name, start, walk, points)


def test_one_leg_ends_at_both_networks_and_is_linear_in_length(tmp_path: Path) -> None:
    network, a, b = networks()
    w_a, w_b = network.ravel(a.weights), network.ravel(b.weights)
    leg = straight_leg(tmp_path, "a", w_a, w_b)
    WeightPath.write(tmp_path, ("a", a), ("b", b), [leg], (leg, 20), 64, {})
    path = WeightPath(tmp_path)
    assert torch.equal(path.at(0), w_a)
    assert torch.equal(path.at(1), w_b)
    assert path.crossover == pytest.approx(0.5)
    for t in (0.1, 0.33, 0.5, 0.9):
        torch.testing.assert_close(path.at(t), torch.lerp(w_a, w_b, t), rtol=1e-4, atol=1e-5)
    length = float((w_b - w_a).norm())
    assert path.lengths["a"] == pytest.approx(length, rel=1e-4)
    assert path.steps[-1].energy == pytest.approx(length**2 / 40, rel=1e-4)


@pytest.mark.parametrize("owner", ["a", "b"])
def test_two_legs_meet_at_the_crossover(tmp_path: Path, owner: str) -> None:
    network, a, b = networks()
    w_a, w_b = network.ravel(a.weights), network.ravel(b.weights)
    c = torch.randn(network.n)
    legs = {
        "a": straight_leg(tmp_path, "a", w_a, c),
        "b": straight_leg(tmp_path, "b", w_b, c),
    }
    t = WeightPath.write(
        tmp_path, ("a", a), ("b", b), [legs["a"], legs["b"]], (legs[owner], 40), 20, {}
    )
    path = WeightPath(tmp_path)
    assert len(path.ts) <= 20
    assert path.ts == sorted(set(path.ts))
    assert len(list(tmp_path.glob("*-0*.safetensors"))) <= 20
    expected = legs["a"].length / (legs["a"].length + legs["b"].length)
    assert t == path.crossover == pytest.approx(expected)
    torch.testing.assert_close(path.at(t), c, rtol=1e-5, atol=1e-6)
    assert torch.equal(path.at(0), w_a)
    assert torch.equal(path.at(1), w_b)
    half = path.at(t / 2)
    torch.testing.assert_close(half, torch.lerp(w_a, c, 0.5), rtol=1e-3, atol=1e-4)


def test_checkpoints_of_a_path(tmp_path: Path) -> None:
    network, a, b = networks()
    w_a, w_b = network.ravel(a.weights), network.ravel(b.weights)
    leg = straight_leg(tmp_path, "b", w_b, w_a)
    WeightPath.write(tmp_path, ("a", a), ("b", b), [leg], (leg, 10), 64, {})
    known = WeightPath(tmp_path, network=network, ends={"a": w_a, "b": w_b})
    for path in (WeightPath(tmp_path), known):
        path.at(0).zero_()
        path.at(1).zero_()
        for name, value in a.weights.items():
            assert torch.equal(path.checkpoint(0).weights[name], value)
            assert torch.equal(path.checkpoint(1).weights[name], b.weights[name])
            middle = torch.lerp(value, b.weights[name], 0.5)
            torch.testing.assert_close(path.checkpoint(0.5).weights[name], middle)
        assert torch.equal(path.at(0), w_a)
        assert torch.equal(path.at(1), w_b)
        with pytest.raises(OptionError, match="between 0 and 1"):
            path.at(1.5)


def test_points_are_spread_by_length(tmp_path: Path) -> None:
    network, a, b = networks()
    w_a, w_b = network.ravel(a.weights), network.ravel(b.weights)
    leg = straight_leg(tmp_path, "a", w_a, w_b, points=10)
    assert len(leg.marks) <= 10
    lengths = [length for _, length in leg.marks]
    gaps = [y - x for x, y in pairwise(lengths)]
    assert max(gaps) < 2.5 * leg.length / 9
    assert len(leg.steps) == 40


def test_a_network_with_itself_has_a_path_of_no_length(tmp_path: Path) -> None:
    network, a, _ = networks()
    w = network.ravel(a.weights)
    leg = straight_leg(tmp_path, "a", w, w)
    WeightPath.write(tmp_path, ("a", a), ("b", a), [leg], (leg, 40), 64, {})
    path = WeightPath(tmp_path)
    assert sum(path.lengths.values()) == 0
    assert torch.equal(path.at(0.5), w)


def test_a_missing_or_damaged_path_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no whole path"):
        WeightPath(tmp_path)
    network, a, b = networks()
    leg = straight_leg(tmp_path, "a", network.ravel(a.weights), network.ravel(b.weights))
    WeightPath.write(tmp_path, ("a", a), ("b", b), [leg], (leg, 20), 64, {})
    leg.file(leg.marks[3][0]).unlink()
    path = WeightPath(tmp_path)
    with pytest.raises(RunError, match="cannot read"):
        path.at(path.ts[3])


def test_large_networks_have_fewer_stored_points_unless_a_number_is_given() -> None:
    assert points_stored(64, 64, 10_000) == 64
    assert points_stored(64, 64, 20_000_000) == 25  # 2 GB
    assert points_stored(64, 64, 110_000_000) == 8
    assert points_stored(40, 64, 110_000_000) == 40


def test_a_stored_state_refers_to_points_that_are_files(tmp_path: Path) -> None:
    network, a, b = networks()
    w_a, w_b = network.ravel(a.weights), network.ravel(b.weights)
    file = tmp_path / "state.safetensors"
    kept = StateFile(file)

    def walk() -> Iterator[WalkPoint]:
        for point in walk_straight(w_a, w_b, EuclideanMetric(), 40):
            yield point
            kept.write()
            marks = StateFile(file).state.part("leg").values["marks"]
            assert all(Leg(tmp_path, "a", w_a).file(step).exists() for step, _ in marks[1:])

    leg = record_leg(tmp_path, "a", w_a, walk(), 6, kept=kept)
    assert {leg.file(step) for step, _ in leg.marks[1:]} == set(tmp_path.glob("a-*"))


def test_points_removed_on_a_short_walk_are_never_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, a, b = networks()
    written: list[Path] = []
    monkeypatch.setattr(
        "geomerge.paths.leg.write_tensors", lambda path, tensors: written.append(path)
    )
    leg = straight_leg(tmp_path, "a", network.ravel(a.weights), network.ravel(b.weights), 6)
    assert sorted(written) == [leg.file(step) for step, _ in leg.marks[1:]]


def test_files_of_a_stopped_walk_do_not_outlive_their_points(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, a, b = networks()
    w_a, w_b = network.ravel(a.weights), network.ravel(b.weights)

    def stopped() -> Iterator[WalkPoint]:
        yield from islice(walk_straight(w_a, w_b, EuclideanMetric(), 40), 10)
        raise KeyboardInterrupt

    with monkeypatch.context() as large:  # points become files at once, the state does not
        large.setattr("geomerge.paths.leg._HELD_BYTES", 0)
        with pytest.raises(KeyboardInterrupt):
            record_leg(tmp_path, "a", w_a, stopped(), 6)
    assert len(list(tmp_path.glob("a-*"))) == 10
    leg = straight_leg(tmp_path, "a", w_a, w_b, 6)
    assert {leg.file(step) for step, _ in leg.marks[1:]} == set(tmp_path.glob("a-*"))
