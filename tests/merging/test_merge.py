from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from merges import merged_of, run_of, split_options

from geomerge import Checkpoint, WeightPath, load_checkpoint, load_task
from geomerge.errors import CheckpointError, OptionError, RunError, TaskError
from geomerge.evaluation.accuracy import accuracy
from geomerge.merging import MergeResult
from geomerge.metrics import make_sketch, save_sketch
from geomerge.walks.state import WalkState

FAST = {"manifold": ("digits",), "damping": 1e-5}
SHORT = dict(FAST, steps=20)


def pair(folder: Path) -> tuple[Checkpoint, Checkpoint]:
    return load_checkpoint(folder / "a.pt"), load_checkpoint(folder / "b.pt")


def bare(checkpoint: Checkpoint) -> Checkpoint:
    return Checkpoint(checkpoint.weights, {"architecture": "lenet-300-100"}, {}, "bare.pt")


@pytest.fixture(scope="module")
def merged(digits: Path) -> MergeResult:
    """The whole merge of both networks."""
    return merged_of(pair(digits), FAST)


@pytest.fixture(scope="module")
def finished(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a short run, which tests copy before they go on with it."""
    out = tmp_path_factory.mktemp("finished") / "run"
    return run_of([digits / "a.pt", digits / "b.pt"], SHORT, out=out, pt=True)[0]


def test_the_sketch_preset_does_both_tasks(digits: Path, merged: MergeResult) -> None:
    a, b = pair(digits)
    assert merged.preset.name == "sketch"
    assert merged.rule.name == "max-min"
    tasks = [load_task(name) for name in ("digits", "digits-permuted")]
    network = merged.space.network
    assert min(accuracy(network, merged.w, t.test) for t in tasks) > 0.8
    path = merged.path
    assert torch.equal(path.at(0), network.ravel(a.weights))
    assert torch.equal(path.at(1), network.ravel(b.weights))
    assert torch.equal(path.at(merged.t), merged.w)
    assert len(path.ts) <= 64
    assert set(path.lengths) == {"a", "b"}


def test_either_side_may_give_the_data(digits: Path) -> None:
    a, b = pair(digits)
    merged = merged_of([a, b], dict(FAST, manifold=("digits-permuted",), steps=60))
    assert merged.preset.start.name == "a"
    assert merged.preset.goal.name == "b"
    tasks = [load_task(name) for name in ("digits", "digits-permuted")]
    assert min(accuracy(merged.space.network, merged.w, t.test) for t in tasks) > 0.8


def test_nothing_known_of_b_takes_surrogate_inputs(digits: Path) -> None:
    a, b = pair(digits)
    merged = merged_of([a, bare(b)], dict(FAST, damping=1e-3, steps=60))
    assert merged.preset.name == "surrogate"
    assert merged.rule.name == "equal-drift"
    assert accuracy(merged.space.network, merged.w, load_task("digits").test) > 0.6
    assert torch.equal(merged.path.at(1), merged.space["b"].weights)


def test_the_paper_preset_is_taken_by_its_name(digits: Path) -> None:
    a, b = pair(digits)
    merged = merged_of([a, bare(b)], dict(FAST, damping=1e-3, preset="paper", steps=60))
    assert merged.preset.name == "paper"
    assert merged.rule.name == "a>=0.80"
    assert merged.picked.score.accuracy["b"] is None
    task = load_task("digits")
    assert accuracy(merged.space.network, merged.w, task.select) >= 0.80
    assert torch.equal(merged.path.at(1), merged.space["b"].weights)


def test_a_sketch_without_data_of_b_picks_by_drift(digits: Path) -> None:
    a, b = pair(digits)
    unknown = Checkpoint(
        b.weights,
        {"sketch": {**b.meta["sketch"], "task": "gone"}, "architecture": "lenet-300-100"},
        b.sketch,
        "b.pt",
    )
    merged = merged_of([a, unknown], SHORT)
    assert merged.rule.name == "equal-drift"
    score = merged.picked.score
    assert score.drift["a"] is not None
    assert score.drift["b"] is not None
    assert any("b is not measured" in note for note in merged.notes)


def test_a_sketch_file_makes_up_for_a_bare_network(
    digits: Path, merged: MergeResult, tmp_path: Path
) -> None:
    a, b = pair(digits)
    network, w = merged.space.network, merged.space["b"].weights
    task = load_task("digits-permuted")
    save_sketch(tmp_path / "b.safetensors", make_sketch(network, w, task.train.inputs, task.name))
    options = dict(SHORT, sketch=(f"b={tmp_path / 'b.safetensors'}",))  # it knows its task
    again = merged_of([a, bare(b)], options)
    assert again.preset.name == "sketch"
    assert again.rule.name == "max-min"


@pytest.mark.slow
def test_the_euclidean_metric_is_worse(digits: Path) -> None:
    a, b = pair(digits)
    worst = {}
    for metric in ("kronecker", "euclidean"):
        options = {"manifold": ("digits",), "metric": metric, "preset": "sketch"}
        worst[metric] = min(v or 0 for v in merged_of([a, b], options).accuracies.values())
    assert worst["kronecker"] > worst["euclidean"] + 0.05


def test_merging_a_network_with_itself_does_not_move(digits: Path) -> None:
    a, _ = pair(digits)
    merged = merged_of([a, a], dict(SHORT, manifold=("a=digits",)))
    w = merged.space["a"].weights
    assert float((merged.w - w).norm()) < 1e-3 * float(w.norm())
    assert sum(merged.path.lengths.values()) < 1e-2


def test_neither_network_is_changed(digits: Path) -> None:
    a, b = pair(digits)
    before = {k: v.clone() for k, v in a.weights.items()}
    merged_of([a, b], dict(FAST, steps=20))
    assert all(torch.equal(a.weights[k], before[k]) for k in before)


def test_a_run_is_complete_and_repeatable(digits: Path, finished: Path, tmp_path: Path) -> None:
    folder, report, before = run_of(
        [digits / "a.pt", digits / "b.pt"], SHORT, out=tmp_path / "one", pt=True
    )
    assert not before
    names = {p.name for p in folder.iterdir()}
    assert names == {
        "recipe.json", "report.json", "report.html", "README.md", "curves.png", "curves.svg",
        "plane.png", "plane.svg", "examples", "merged.safetensors", "merged.pt", "path",
    }  # fmt: skip
    assert json.loads((folder / "report.json").read_text()) == report
    assert [row["name"] for row in report["results"]] == [
        "a", "b", "straight line", "Euclidean walk", "joint training", "crossover"
    ]  # fmt: skip
    assert report["data"]["walk"] == [
        {"for": "a", "task": "digits", "split": "train", "inputs": 1199, "labels": False}
    ]
    assert {d["split"] for d in report["data"]["pick"]} == {"select"}
    assert [leg["keeps_function_of"] for leg in report["legs"]] == [["a"], ["b"]]
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            twin = finished / file.relative_to(folder)
            assert twin.read_bytes() == file.read_bytes(), file.name
    assert str(tmp_path).encode() not in (folder / "merged.safetensors").read_bytes()
    merged = load_checkpoint(folder / "merged.safetensors")
    at = WeightPath(folder / "path").checkpoint(report["crossover"]["t"])
    assert all(torch.equal(merged.weights[k], at.weights[k]) for k in merged.weights)


def test_a_finished_run_is_left_alone(digits: Path, finished: Path, tmp_path: Path) -> None:
    run = [digits / "a.pt", digits / "b.pt"]
    folder = shutil.copytree(finished, tmp_path / "run")
    report = json.loads((folder / "report.json").read_text())
    stamp = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    again, same, before = run_of(run, SHORT, out=tmp_path / "run")
    assert before
    assert (again, same) == (folder, report)
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*")} == stamp
    with pytest.raises(RunError, match="another recipe"):
        run_of(run, dict(SHORT, seed=1), out=tmp_path / "run")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(RunError, match="not empty"):
        run_of(run, SHORT, out=tmp_path / "full")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["full", "run"]


def test_an_interrupted_run_can_go_on_and_is_no_run_yet(digits: Path, tmp_path: Path) -> None:
    def stop(progress: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_of([digits / "a.pt", digits / "b.pt"], FAST, out=tmp_path / "run", progress=stop)
    assert [p.name for p in tmp_path.iterdir()] == [".run.unfinished"]


def test_networks_that_do_not_belong_together(digits: Path) -> None:
    a, _ = pair(digits)
    wide = replace(a, source="wide.pt", sketch={}, weights={
        k: v.repeat(2, *[1] * (v.dim() - 1)) if "2." in k else v for k, v in a.weights.items()
    })  # fmt: skip
    with pytest.raises(CheckpointError, match="different heads"):
        merged_of([a, wide], FAST)
    other = Checkpoint({"x.weight": torch.zeros(2, 2)}, {}, {}, "other.pt")
    with pytest.raises(CheckpointError, match="not of one architecture"):
        merged_of([a, other], FAST)
    colours = dict(FAST, manifold=("cifar10",), data_root="/nowhere")
    with pytest.raises(TaskError, match="no CIFAR10 under /nowhere"):
        merged_of([a, a], colours)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"preset": "scetch"}, "did you mean 'sketch'"),
        ({"metric": "kroneker"}, "did you mean 'kronecker'"),
        ({"damping": -1.0}, "`damping` to be a positive number"),
        ({"steps": 0}, "`steps` to be 1 or more"),
        ({"points": 1}, "`points` to be 8 or more"),
        ({"pick": "best"}, "unknown pick"),
        ({"manifold": ("a=x", "a=y")}, "two manifolds for a"),
        ({"normalisation": ("mnist",)}, "TASK=MEAN/STD"),
    ],
)
def test_options_are_checked_before_any_work(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        split_options(wrong)


def test_what_the_data_does_not_allow_is_said(digits: Path) -> None:
    a, b = pair(digits)
    with pytest.raises(OptionError, match="name the task of one network with `inputs`"):
        merged_of([a, bare(b)], {})
    with pytest.raises(
        OptionError, match="needs labelled data of all tasks, and there is none for b"
    ):
        merged_of([a, bare(b)], dict(FAST, pick="balanced"))
    with pytest.raises(OptionError, match="needs a sketch of one network and inputs"):
        merged_of([a, bare(b)], dict(FAST, preset="sketch"))
    with pytest.raises(OptionError, match="cannot compute on 'cuda:77'"):
        merged_of([a, b], dict(FAST, device="cuda:77"))
    with pytest.raises(OptionError, match="did you mean 'digits'"):
        merged_of([a, b], dict(FAST, normalisation=("digit=0/1",)))


def test_a_manifold_of_another_task_keeps_the_function_and_not_the_labels(digits: Path) -> None:
    a, b = pair(digits)
    options = dict(FAST, manifold=("a=digits-permuted",), steps=20)
    merged = merged_of([a, b], options)
    assert merged.space["a"].task is not None
    assert merged.space["a"].task.name == "digits"
    assert merged.space["a"].inputs.name == "digits-permuted"
    assert any("trained for digits" in note for note in merged.notes)


def test_a_sketch_that_measures_something_else_is_left_out_and_said(digits: Path) -> None:
    a, b = pair(digits)
    merged = merged_of([a, b], dict(FAST, output="logits", damping=1e-3, preset="paper", steps=20))
    assert sum("is not used: it measures hellinger" in note for note in merged.notes) == 2


def test_the_merged_network_has_one_name_and_its_earlier_ones(digits: Path) -> None:
    merged = merged_of(list(pair(digits)), {**FAST, "steps": 5})
    assert torch.equal(merged.expert.weights, merged.w)
    assert merged.expert_for("b").task.name == "digits-permuted"
    with pytest.warns(DeprecationWarning, match="MergeResult.expert now"):
        assert merged.merged is merged.expert
    with pytest.warns(DeprecationWarning, match=r"expert_for\(name\) now"):
        assert merged.expert("b").accuracy() == merged.expert_for("b").accuracy()


def test_networks_off_the_path_know_their_tasks(digits: Path) -> None:
    a, b = pair(digits)
    merged = merged_of([a, b], dict(FAST, steps=20))
    meta = merged.checkpoint().meta
    assert set(meta["tasks"]) == {"digits", "digits-permuted"}
    assert meta["architecture"] == "lenet-300-100"


def test_two_architectures_of_equal_shapes_are_not_mixed(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "equal_shapes.py").write_text(
        "from geomerge.networks.architectures import create_network\n"
        "def tanh():\n"
        "    return create_network('lenet-300-100:tanh', (1, 8, 8), 10, seed=0)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    a, b = pair(digits)
    other = replace(b, meta={**b.meta, "architecture": "equal_shapes:tanh"})
    with pytest.raises(CheckpointError, match="expected networks of one architecture"):
        merged_of([a, other], FAST)


def test_a_floor_that_no_point_meets_is_said(digits: Path) -> None:
    a, b = pair(digits)
    merged = merged_of([a, b], dict(FAST, pick="b>=1.0", steps=20))
    assert any("no point of the path meets b>=1.0" in note for note in merged.notes)


def test_straight_legs_lead_to_the_same_crossover(tiny: Path) -> None:
    options = {"manifold": ("a=digits", "b=digits-permuted"), "steps": 5, "damping": 1e-3}
    walked = merged_of(pair(tiny), options)
    straight = merged_of(pair(tiny), {**options, "legs": "straight"})
    assert torch.equal(straight.w, walked.w)
    path = straight.path
    for end, legs in ((0.0, path.ts[1:]), (1.0, path.ts[:-1])):
        points = [path.at(t) for t in legs if (t < straight.t) == (end == 0)]
        assert points
        way = straight.w - path.at(end)
        for moved in (point - path.at(end) for point in points):
            assert torch.allclose(moved, way * (moved.norm() / way.norm()), atol=1e-6)
    assert [leg.keeps for leg in walked.preset.describe()] == [("a",), ("b",)]
    assert [leg.keeps for leg in straight.preset.describe()] == [(), ()]
    assert not any("straight line" in note for note in straight.notes)  # it was asked for


def test_legs_of_large_networks_are_straight_and_a_note_says_so(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("geomerge.merging.walker.LARGE", 1000)
    options = {"manifold": ("a=digits", "b=digits-permuted"), "steps": 3, "damping": 1e-3}
    merged = merged_of(pair(tiny), options)
    assert merged.preset.name == "joint"
    assert all(not leg.keeps for leg in merged.preset.describe())
    assert any("from a and from b to the crossover is a straight line" in n for n in merged.notes)
    again = merged_of(pair(tiny), {**options, "legs": "walked"})
    assert torch.equal(again.w, merged.w)
    assert all(leg.keeps for leg in again.preset.describe())
    assert not any("straight line" in note for note in again.notes)


def test_a_leg_begun_as_a_walk_is_finished_as_one(tiny: Path) -> None:
    options = {"manifold": ("a=digits", "b=digits-permuted"), "steps": 2, "damping": 1e-3}
    preset = merged_of(pair(tiny), {**options, "legs": "straight"}).preset
    end, middle, state = preset.space.experts[0], preset.space.middle(), WalkState()
    walked = preset.again(legs="walked").close(end, middle, state)
    next(walked.points)
    steps = preset.close(end, middle, WalkState()).steps
    assert preset.close(end, middle, state).steps == walked.steps > steps


def test_sketches_describe_their_own_legs(digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("geomerge.merging.walker.LARGE", 1000)
    merged = merged_of(pair(digits), {"preset": "sketches"})
    assert [leg.keeps for leg in merged.preset.describe()] == [("a",), ("b",)]
    assert not any("straight line" in note for note in merged.notes)
