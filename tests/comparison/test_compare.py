"""The table as a whole: two networks on digits, every method."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import torch
from merges import experts_of
from torch import nn

from geomerge import MergeOptions, load_checkpoint
from geomerge.comparison import METHODS, CompareOptions, compare
from geomerge.comparison.registry import GROUPS, Method, MethodResult
from geomerge.errors import CheckpointError, NumericalError, OptionError
from geomerge.options import replace_options
from geomerge.report.labels import place_names

BOTH = {"manifold": ("digits", "digits-permuted")}
SHORT = MergeOptions(steps=30)


def test_every_file_of_methods_puts_a_row_into_the_table() -> None:
    files = {Path(inspect.getfile(m.make)).stem for m in METHODS.values()}
    folder = Path(inspect.getfile(METHODS["a"].make)).parent
    assert files == {file.stem for file in folder.glob("*.py")} - {"__init__"}
    groups = [GROUPS.index(m.group) for m in METHODS.values()]
    assert groups == sorted(groups)
    assert all(m.about and name == m.name for name, m in METHODS.items())


def test_all_methods_on_two_networks(digits: Path) -> None:
    experts = experts_of([digits / f"{k}.pt" for k in "ab"], BOTH)
    found = compare(experts, CompareOptions(SHORT))
    rows = {row.method.name: row for row in found.rows}
    assert list(rows) == list(METHODS)
    reasons = {name for name, row in rows.items() if row.reason is not None}
    assert reasons == {"dare", "iso-c", "repair", "task-arithmetic", "ties", "tsv-m", "wudi"}
    assert all(row.reason.startswith("does not apply: ") for row in rows.values() if row.reason)
    assert rows["a"].test["a"] == found.experts["a"]
    worst = {
        name: max(found.experts[k] - row.test[k] for k in "ab")
        for name, row in rows.items()
        if row.result is not None
    }
    assert max(worst["joint-walk"], worst["sketch-walk"], worst["distillation"]) < 0.15
    assert worst["regmean"] < worst["average"] > 0.15
    for name in ("fine-tuning", "wise-ft", "ewc", "distillation", "joint-training"):
        taken = rows[name].result
        assert taken is not None
        assert 0.8 * found.max_samples < taken.samples <= found.max_samples, name
    joint = rows["joint-walk"].result
    assert joint is not None
    assert joint.samples == found.max_samples
    assert joint.labels == ()
    assert rows["straight-line"].curve[0] == rows["a"].test


def test_a_comparison_is_the_same_again(digits: Path) -> None:
    experts = experts_of([digits / f"{k}.pt" for k in "ab"], BOTH)
    options = CompareOptions(SHORT, only=("ewc", "joint-training", "zipit", "sketch-walk"))
    one, two = (compare(experts, options) for _ in range(2))
    assert [row.test for row in one.rows] == [row.test for row in two.rows]


def test_what_fails_or_does_not_apply_leaves_the_others(
    digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def infinite(context: object) -> MethodResult:
        return MethodResult(torch.full((2,), float("inf")))

    def failing(context: object) -> MethodResult:
        raise NumericalError("no number came of it")

    for name, make in (("slerp", infinite), ("fisher", failing)):
        monkeypatch.setitem(METHODS._objects, name, Method(name, "weights", "fails", make))
    data = {"manifold": ("digits",), "task": ("b=digits-permuted",)}
    experts = experts_of([digits / f"{k}.pt" for k in "ab"], data)
    options = CompareOptions(only=("average", "slerp", "fisher", "regmean", "joint-walk"))
    rows = {row.method.name: row for row in compare(experts, options).rows}
    assert rows["average"].reason is None
    assert rows["slerp"].reason == "failed: its weights are not finite, expected finite numbers"
    assert rows["fisher"].reason == "failed: no number came of it"
    for name in ("regmean", "joint-walk"):
        assert "needs inputs of b's task" in (rows[name].reason or "")


def test_heads_of_their_own(digits: Path) -> None:
    experts = experts_of([digits / f"{k}.pt" for k in "ab"], BOTH)
    only = (
        "ensemble", "average", "regmean", "activation-matching", "zipit", "wise-ft", "ewc",
        "joint-training",
    )  # fmt: skip
    merge = MergeOptions(steps=30, head="separate")
    found = compare(experts, CompareOptions(merge, only=only))
    rows = {row.method.name: row for row in found.rows}
    assert {name for name, row in rows.items() if row.reason} == {"ensemble", "joint-training"}
    assert min(rows["zipit"].test.values()) > 0.7


def test_an_ancestor_must_be_one(digits: Path) -> None:
    experts = experts_of([digits / f"{k}.pt" for k in "ab"], BOTH)
    only = CompareOptions(SHORT, only=("task-arithmetic", "ties"))
    found = compare(experts, only, base=digits / "a.pt")
    assert [row.reason for row in found.rows] == [None, None]
    other = nn.Linear(64, 10)
    with pytest.raises(CheckpointError, match="no ancestor"):
        compare(experts, only, base=other)


@pytest.mark.parametrize(
    ("given", "part"),
    [
        ({"only": ("slurp",)}, "did you mean 'slerp'"),
        ({"skip": ("tise",)}, "did you mean 'ties'"),
        ({"only": ("ties",), "skip": ("ties",)}, "no method is left"),
        ({"max_samples": 0}, "expected `max_samples` to be 1 or more, got 0"),
        ({"merge": MergeOptions(metric="euclidean")}, "chooses metric itself"),
    ],
)
def test_options_are_checked(given: dict[str, object], part: str) -> None:
    with pytest.raises(OptionError, match=part):
        CompareOptions(**given)  # type: ignore[arg-type]


def test_another_number_of_samples_is_another_recipe() -> None:
    two = [CompareOptions(max_samples=count) for count in (4000, 5000)]
    assert two[0].recorded() != two[1].recorded()
    assert two[0].recorded()["max_samples"] == 4000
    with pytest.warns(DeprecationWarning, match="`budget` is called `max_samples` now"):
        earlier = CompareOptions(budget=4000)
    assert earlier == two[0]
    assert replace_options(two[1], max_samples=4000, only="slerp").only == ("slerp",)


def test_labels_need_the_tasks(digits: Path) -> None:
    networks = [load_checkpoint(digits / f"{k}.pt") for k in "ab"]
    networks[1].meta.clear()
    networks[1].sketch.clear()
    experts = experts_of(networks, {"manifold": ("digits",), "arch": "lenet-300-100"})
    with pytest.raises(OptionError, match="both tasks, and there is none for b"):
        compare(experts)


def test_names_hide_neither_each_other_nor_points() -> None:
    placed: list[tuple[str, tuple[float, float]]] = []

    class Axes:
        def annotate(self, name: str, xy: object, at: tuple[float, float], **_: object) -> None:
            placed.append((name, at))

    points = [(f"method-{k}", (0.5 + 0.01 * (k % 4), 0.5 + 0.01 * (k // 4))) for k in range(12)]
    place_names(Axes(), points, width=0.01, height=0.03)
    for k, (one, (x, y)) in enumerate(placed):
        assert 0.005 * len(one) <= x <= 1 - 0.005 * len(one)
        for two, (u, v) in placed[:k]:
            apart = abs(x - u) >= 0.005 * (len(one) + len(two)) - 1e-9
            assert apart or abs(y - v) >= 0.03 - 1e-9
        for _, (u, v) in points:
            assert abs(x - u) >= 0.005 * len(one) or abs(y - v) >= 0.015
