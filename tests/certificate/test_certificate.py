from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from merges import run_of
from torch import nn

from geomerge import Network
from geomerge.certificate import self_tests
from geomerge.certificate.certificate import report_digest
from geomerge.certificate.evidence import counted
from geomerge.certificate.self_tests import STANDS, STAYS, step_self_tests
from geomerge.data import Inputs, Normalisation
from geomerge.data.digest import tensor_digest
from geomerge.errors import NumericalError
from geomerge.io.files import sha256
from geomerge.metrics import METRICS, MetricOptions
from geomerge.networks.architectures.transformer import VisionTransformer

NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (lambda: nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3)), (5,)),
    "normed": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)
        ),
        (1, 8, 8),
    ),
    "transformer": (lambda: VisionTransformer(1, 4, 3), (1, 8, 8)),
}


@pytest.fixture
def report(finished: Path) -> dict[str, Any]:
    return json.loads((finished / "report.json").read_text())


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in items:
        if isinstance(item, dict | list):
            yield from leaves(item, (*path, key))
        elif isinstance(item, int | float) and not isinstance(item, bool):
            yield (*path, key)


def test_a_certificate_names_every_file_and_all_data(
    finished: Path, report: dict[str, Any], digits: Path
) -> None:
    given = report["certificate"]
    files = {
        f.relative_to(finished).as_posix(): sha256(f.read_bytes())
        for f in finished.rglob("*")
        if f.is_file() and f.name not in ("report.json", "report.html")
    }
    assert given["files"] == files
    assert given["inputs"] == {n: sha256((digits / f"{n}.pt").read_bytes()) for n in "ab"}
    assert given["data"]["a"]["manifold"]["examples"] == 1199
    assert given["data"]["b"]["manifold"] is None
    assert given["data"]["b"]["task"]["select"]["examples"] == 299
    assert given["seeds"] == {"merge": 0, "selection": 0, "training": {"a": 0, "b": 1}}
    assert all(given["identity"].values())
    assert len(given["identity"]) == 5


def test_counts_are_those_of_the_table(report: dict[str, Any]) -> None:
    rows = {row["name"]: row for row in report["results"]}
    for name, splits in report["certificate"]["accuracies"].items():
        for split, tasks in splits.items():
            for task, found in tasks.items():
                assert found["correct"] / found["of"] == rows[name][split][task]
                assert found["interval"][0] <= found["accuracy"] <= found["interval"][1]


def test_the_bracket_is_the_stored_points_next_to_the_crossover(report: dict[str, Any]) -> None:
    before, after = report["certificate"]["bracket"]
    assert before["t"] < report["crossover"]["t"] < after["t"]
    curve = {point["t"]: point["accuracy"] for point in report["curve"]}
    for point in (before, after):
        shares = {name: found["accuracy"] for name, found in point["select"].items()}
        assert shares == curve[point["t"]]


def test_residuals_of_the_programs_are_kept(report: dict[str, Any]) -> None:
    programs = report["certificate"]["programs"]
    assert programs["solved"] > 0
    assert 0 < programs["largest_residual"] < 1e-6


def test_drift_is_measured_and_predicted(report: dict[str, Any]) -> None:
    found = report["certificate"]["drift"]
    for name in "ab":
        assert found["networks"][name]["kl"] > 0
        assert found["networks"][name]["measured"] == report["crossover"]["drift"][name]
        assert found["networks"][name]["predicted"] > 0
        assert found["legs"][name]["predicted"] > 0
        assert found["legs"][name]["measured"] > 0


def test_the_same_command_gives_the_same_certificate(
    finished: Path, report: dict[str, Any], digits: Path, options: dict[str, Any], tmp_path: Path
) -> None:
    _, again, _ = run_of([digits / "a.pt", digits / "b.pt"], options, out=tmp_path / "again")
    assert again == report
    same = (tmp_path / "again" / "report.json").read_bytes()
    assert same == (finished / "report.json").read_bytes()


def test_every_number_of_a_report_is_in_its_digest(report: dict[str, Any]) -> None:
    digest = report_digest(report)
    assert digest == report["certificate"]["report_sha256"]
    places = list(leaves(report))
    assert len(places) > 100
    for place in places:
        edited = copy.deepcopy(report)
        part = edited
        for key in place[:-1]:
            part = part[key]
        part[place[-1]] += 1
        assert report_digest(edited) != digest, place


@pytest.mark.parametrize(("correct", "of"), [(0, 7), (7, 7), (3, 7), (4900, 5000)])
def test_an_interval_holds_the_share_and_narrows_with_more_examples(correct: int, of: int) -> None:
    widths = []
    for times in (1, 2, 10):
        found = counted(times * correct, times * of)
        low, high = found["interval"]
        assert 0 <= low <= found["accuracy"] <= high <= 1
        widths.append(high - low)
    assert widths == sorted(widths, reverse=True)
    assert widths[-1] < widths[0] / 2


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("name", NETWORKS)
def test_steps_that_want_nothing_do_not_move(name: str, metric: str) -> None:
    torch.manual_seed(0)
    make, shape = NETWORKS[name]
    network = Network(make())
    inputs = Inputs(torch.randn(40, *shape), Normalisation((0.0,), (1.0,)))
    found = step_self_tests(network, network.initial, inputs, MetricOptions(metric), 0)
    assert found == {STAYS: True, STANDS: True}


def test_a_network_that_is_not_a_function_is_found_out() -> None:
    class Restless(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(5, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x + 1e-3 * torch.rand_like(x))

    network = Network(Restless())
    inputs = Inputs(torch.randn(40, 5), Normalisation((0.0,), (1.0,)))
    found = step_self_tests(network, network.initial, inputs, MetricOptions("euclidean"), 0)
    assert not found[STAYS]


def test_a_run_whose_identities_fail_is_not_written(
    digits: Path, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(self_tests, "step_self_tests", lambda *args: {STAYS: False})
    with pytest.raises(NumericalError, match="a walk from a network to itself has length zero"):
        run_of([digits / "a.pt", digits / "b.pt"], options, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_digest_sees_type_shape_and_numbers_and_nothing_else() -> None:
    x = torch.arange(12, dtype=torch.float32).view(3, 4)
    assert tensor_digest(x) == tensor_digest(x.T.contiguous().T)
    others = [x.view(4, 3), x.int(), x + torch.eye(3, 4), x.flatten(), x[:0]]
    assert len({tensor_digest(x), *map(tensor_digest, others)}) == 6
