"""Sharded merges of model folders: their files, resumption and refusals."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from model_folders import TASKS, language_model, write_folder
from process_groups import run
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
from transformers import BertForSequenceClassification

import geomerge as gm
from geomerge.errors import GeomergeError
from geomerge.evaluation.pick import Score, parse_pick
from geomerge.evaluation.search import first_of_best
from geomerge.io.files import cannot_write
from geomerge.sharded import checkpoint, merge_sharded, written
from geomerge.sharded.walk import ShardedWalk


def _fill(what: str) -> None:
    """Have the disk be full where a process writes something."""
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def no_room(*_: Any) -> Any:
        raise full

    def no_file(path: Path, _: bytes) -> None:
        raise cannot_write(path, full)

    if what == "shards":
        HuggingFaceStorageWriter.write_data = no_room  # type: ignore[method-assign]
    else:
        (checkpoint if what == "state" else written).write_bytes = no_file


def _merged(
    rank: int, place: Path, out: Path, ends: int | None, full: str, changes: dict[str, Any]
) -> str:
    """The report of a merge, or its error; before a step process 1 is killed, or a disk is full."""
    step = ShardedWalk.step

    def ending(walk: ShardedWalk) -> Any:
        if walk.taken == ends and full:
            what, _, number = full.partition(" ")
            if rank == int(number):
                _fill(what)
        elif walk.taken == ends and rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(walk)

    ShardedWalk.step = ending  # type: ignore[method-assign]
    began = time.monotonic()
    given = {"steps": 3, "interval": 1, "damping": 1e-2, **changes}
    tasks = given.pop("manifold", tuple(str(place / f"{task}.csv") for task in TASKS))
    networks = given.pop("networks", [place / task for task in TASKS])
    try:
        return json.dumps(merge_sharded(networks, out=out, manifold=tasks, **given))
    except GeomergeError as error:
        assert time.monotonic() - began < 60
        return f"{type(error).__name__}: {error}"


def merged(
    place: Path,
    folder: Path,
    size: int = 2,
    ends: int | None = None,
    full: str = "",
    **changes: Any,
) -> list[str]:
    """What each process returns; the merge is in ``out`` of the folder."""
    folder.mkdir(exist_ok=True)
    for left in ("store", "0.pt", "1.pt", "2.pt"):
        (folder / left).unlink(missing_ok=True)
    return run(_merged, size, folder, place, folder / "out", ends, full, changes)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model-00001-of-00001.safetensors")


def test_a_merge_is_a_model_folder_for_each_head(place: Path, tmp_path: Path) -> None:
    first, second = map(json.loads, merged(place, tmp_path, base=place / "base"))
    assert first == second == json.loads((tmp_path / "out" / "merge.json").read_text())
    assert first["own_layers"] == ["bert.pooler.dense", "classifier"]
    assert [point["step"] for point in first["points"]] == [0, 2, 4, 6]
    least = {point["step"]: min(point["select"].values()) for point in first["points"]}
    assert first["rule"] == "max-min"
    assert first["picked"] == max(least, key=lambda step: (least[step], -step))
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["colour", "count", "merge.json"]  # nothing of the walk is left
    trunks = []
    for name, task in zip("ab", TASKS, strict=True):
        folder = tmp_path / "out" / task
        expert = gm.Expert.load(folder, str(place / f"{task}.csv"))  # with its tokenizer
        assert expert.accuracy() == pytest.approx(first["test"][name])
        module = BertForSequenceClassification.from_pretrained(folder)
        trunks.append(module.bert.encoder.state_dict())
        torch.testing.assert_close(module.state_dict(), weights(folder), rtol=0, atol=0)
    torch.testing.assert_close(*trunks, rtol=0, atol=0)


def test_a_killed_merge_goes_on_with_another_number_of_processes(
    place: Path, tmp_path: Path
) -> None:
    said = merged(place, tmp_path / "killed", 3, ends=3)
    assert len(said) == 2
    for one in said:
        assert one.startswith("ProcessError: one of the processes that compute together has ended")
    assert not (tmp_path / "killed" / "out").exists()
    work = tmp_path / "killed" / ".out.unfinished" / "work"
    assert json.loads((work / "state").read_text())["step"] == 2
    resumed = json.loads(merged(place, tmp_path / "killed", 2)[0])
    whole = json.loads(merged(place, tmp_path / "whole", 2)[0])
    assert resumed == whole
    for task in TASKS:  # equal but for the order of sums
        one, other = (weights(tmp_path / k / "out" / task) for k in ("killed", "whole"))
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_a_merge_killed_and_resumed_has_the_bits_of_one_that_was_not(
    place: Path, tmp_path: Path
) -> None:
    changes = {"start_at": "kronecker-mean"}
    merged(place, tmp_path / "killed", ends=5, **changes)
    assert merged(place, tmp_path / "killed", **changes) == merged(
        place, tmp_path / "whole", **changes
    )
    for task in TASKS:
        one, other = (weights(tmp_path / k / "out" / task) for k in ("killed", "whole"))
        assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("full", "left"),
    [
        ("shards 1", 2),
        pytest.param("shards 0", 2, marks=pytest.mark.slow),
        pytest.param("state 0", 2, marks=pytest.mark.slow),
        pytest.param("report 0", 6, marks=pytest.mark.slow),
    ],
)
def test_a_full_disk_of_one_process_ends_all_and_the_last_checkpoint_stays(
    full: str, left: int, place: Path, tmp_path: Path
) -> None:
    said = merged(place, tmp_path, ends=3, full=full)
    assert len(said) == 2
    own = said[int(full[-1])]
    stage = tmp_path / ".out.unfinished"
    assert own.startswith(f"RunError: cannot write {stage}")
    assert "(no space left on device); make room" in own
    assert all("\n" not in one for one in said)
    assert not (tmp_path / "out").exists()
    state = json.loads((stage / "work" / "state").read_text())
    assert state["step"] == left
    kept = {path.name for path in (stage / "work").glob("[!.]*-*")}
    assert kept >= set(state["folders"].values())
    assert not list((stage / "work").glob(".point-*"))
    resumed = merged(place, tmp_path)
    assert resumed == merged(place, tmp_path / "whole")
    for task in TASKS:
        one, other = (weights(f / task) for f in (tmp_path / "out", tmp_path / "whole" / "out"))
        assert all(torch.equal(one[name], other[name]) for name in one)


def _tables(place: Path, folder: Path) -> tuple[str, ...]:
    """Copies of the tables, which may be changed."""
    return tuple(str(shutil.copy(place / f"{task}.csv", folder)) for task in TASKS)


@pytest.mark.parametrize("column", ["text", "label"])
def test_a_merge_is_not_resumed_with_another_table(
    column: str, place: Path, tmp_path: Path
) -> None:
    tables = _tables(place, tmp_path)
    merged(place, tmp_path, ends=3, manifold=tables)
    work = tmp_path / ".out.unfinished" / "work"
    kept = (work / "state").read_bytes()
    header, *lines = Path(tables[1]).read_text().splitlines()
    rows = [line.rpartition(",") for line in lines]
    if column == "text":
        rows[0] = (f"{rows[0][0]} cow", *rows[0][1:])
    else:  # the inputs of the walk are the same
        rows = [(text, comma, "pair") for text, comma, _ in rows]
    changed = "\n".join([header, *map("".join, rows)])
    before = Path(tables[1]).read_bytes()
    Path(tables[1]).write_text(changed + "\n")
    first, second = merged(place, tmp_path, manifold=tables)
    assert "holds an unfinished run of another recipe, version or device (another data b);" in first
    assert second.startswith("ProcessError: one of the processes that compute together has ended")
    assert (work / "state").read_bytes() == kept
    Path(tables[1]).write_bytes(before)
    assert "ProcessError" not in merged(place, tmp_path, manifold=tables)[0]


def test_a_pick_by_a_floor_is_that_of_unsharded_merges(place: Path, tmp_path: Path) -> None:
    report = json.loads(merged(place, tmp_path, pick="a>=0.99", interval=2)[0])
    scores = {point["step"]: Score(point["select"]) for point in report["points"]}
    own = {name: one["select"] for name, one in report["networks"].items()}
    assert report["picked"] == first_of_best(scores, parse_pick("a>=0.99", own))


def _same_task(place: Path, folder: Path) -> list[Path]:
    """Two networks of one task, the second moved a little away from the first."""
    other = folder / "other"
    shutil.copytree(place / "count", other)
    moved = {
        k: v + 0.01 * torch.randn(v.shape, generator=torch.Generator().manual_seed(0))
        for k, v in load_file(other / "model.safetensors").items()
    }
    save_file(moved, other / "model.safetensors")
    return [place / "count", other]


def test_networks_of_one_task_get_one_head_and_no_walk_on_request(
    place: Path, tmp_path: Path
) -> None:
    networks, table = _same_task(place, tmp_path), str(place / "count.csv")
    changes = {"networks": networks, "manifold": (table, table), "steps": 0, "dtype": "bfloat16"}
    older = json.loads((networks[1] / "config.json").read_text())  # leaves out a usual value
    del older["hidden_act"]
    (networks[1] / "config.json").write_text(json.dumps(older))
    report = json.loads(merged(place, tmp_path, **changes)[0])
    assert (report["head"], report["picked"]) == ("shared", 0)
    found = weights(tmp_path / "out")
    for name, one in load_file(networks[0] / "model.safetensors").items():
        mean = torch.stack([one, load_file(networks[1] / "model.safetensors")[name]]).mean(0)
        assert torch.equal(found[name], mean.bfloat16())
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"


def test_weights_are_written_and_measured_in_the_type_of_all_files(
    place: Path, tmp_path: Path
) -> None:
    networks = _same_task(place, tmp_path)
    halves = []
    for k, network in enumerate(networks):
        halves.append(shutil.copytree(network, tmp_path / f"half{k}"))
        own = load_file(network / "model.safetensors")
        save_file({k: v.half() for k, v in own.items()}, halves[-1] / "model.safetensors")
        config = json.loads((network / "config.json").read_text())
        del config["dtype"]
        config["torch_dtype"] = "float16"  # as earlier versions wrote it
        (halves[-1] / "config.json").write_text(json.dumps(config))
    table = str(place / "count.csv")
    changes = {"networks": halves, "manifold": (table, table), "steps": 1}
    report = json.loads(merged(place, tmp_path, **changes)[0])
    assert {tensor.dtype for tensor in weights(tmp_path / "out").values()} == {torch.float16}
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["dtype"], "torch_dtype" in config) == ("float16", False)
    written = gm.Expert.load(tmp_path / "out", table)
    assert written.accuracy() == pytest.approx(report["test"]["a"])


def _of_another_kind(place: Path, folder: Path) -> dict[str, Any]:
    return {"networks": [place / "colour", write_folder(folder / "gpt", language_model())]}


def _not_finite(place: Path, folder: Path) -> dict[str, Any]:
    networks = _same_task(place, folder)
    broken = load_file(networks[1] / "model.safetensors")
    broken["classifier.weight"][-1] = float("nan")  # in the rows of process 1
    save_file(broken, networks[1] / "model.safetensors")
    return {"networks": networks, "manifold": (str(place / "count.csv"),) * 2}


def _with_more_outputs(place: Path, folder: Path) -> dict[str, Any]:
    networks = _same_task(place, folder)
    wider = load_file(networks[1] / "model.safetensors")
    for name in ("classifier.weight", "classifier.bias"):
        wider[name] = torch.cat([wider[name]] * 2)
    save_file(wider, networks[1] / "model.safetensors")
    return {"networks": [place / "colour", networks[1]]}


def _too_large(place: Path, folder: Path) -> dict[str, Any]:
    networks = _same_task(place, folder)
    large = load_file(networks[1] / "model.safetensors")
    large["classifier.weight"][-1] = 1e6  # in the rows of process 1
    save_file(large, networks[1] / "model.safetensors")
    tables = (str(place / "count.csv"),) * 2
    return {"networks": networks, "manifold": tables, "dtype": "float16", "steps": 0}


def _table_of(rows: int, labels: int) -> Any:
    """Changes by which the second table has few rows, or few labels."""

    def change(place: Path, folder: Path) -> dict[str, Any]:
        tables = _tables(place, folder)
        lines = [("cat", "single"), ("cow", "pair")] * rows
        kept = [(text, label) for text, label in lines if labels > 1 or label == "single"]
        content = "\n".join(["text,label", *map(",".join, kept[:rows])])
        Path(tables[1]).write_text(content + "\n")
        return {"manifold": tables, "steps": 0}

    return change


def _in_another_order(place: Path, folder: Path) -> dict[str, Any]:
    networks = _same_task(place, folder)
    config = json.loads((networks[1] / "config.json").read_text())
    config["id2label"] = {"0": "pair", "1": "single", "2": "many"}
    (networks[1] / "config.json").write_text(json.dumps(config))
    return {"networks": networks, "head": "shared", "manifold": (str(place / "count.csv"),) * 2}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (lambda place, _: {"networks": [place / "colour"]}, "expected 2 to 26 networks, got 1"),
        (lambda place, _: {"networks": [place] * 2}, "has no config.json, expected a model folder"),
        (lambda *_: {"manifold": ("digits",)}, "expected a `manifold` for each of 2 networks"),
        (lambda *_: {"steps": -1}, "expected `steps` to be 0 or more, got -1"),
        (lambda *_: {"head": "shared"}, "name networks of one architecture, or use `head`"),
        (_of_another_kind, "is a language model, expected a network for classification"),
        (_in_another_order, "'pair' is class 1 of "),
        (_not_finite, "weights of the networks are not finite"),
        (_with_more_outputs, "has the shape (6, 8), and by its config.json (3, 8); save the model"),
        (_too_large, "has numbers up to 5e+05, and float16 ends at 6.55e+04; give `dtype`"),
        (_table_of(0, 1), "has no rows, expected examples with labels"),
        (_table_of(5, 2), "has 5 training examples, expected at least 10"),
        (lambda *_: {"pick": "equal-drift"}, "`pick` equal-drift needs drifts, which a sharded"),
    ],
)
def test_what_cannot_be_merged_is_refused_in_all_processes(
    changes: Any, sentence: str, place: Path, tmp_path: Path
) -> None:
    said = merged(place, tmp_path, **changes(place, tmp_path))
    assert len(said) == 2
    for one in said:
        assert sentence in one
        assert "\n" not in one
    assert not (tmp_path / "out").exists()


def test_a_task_of_one_class_is_merged(place: Path, tmp_path: Path) -> None:
    report = json.loads(merged(place, tmp_path, **_table_of(40, 1)(place, tmp_path))[0])
    assert report["rule"] == "max-min"
    assert report["test"].keys() == {"a", "b"}


def test_one_process_is_told_to_start_several(place: Path, tmp_path: Path) -> None:
    with pytest.raises(GeomergeError, match="expects several processes, got one; start it with"):
        merge_sharded([place / task for task in TASKS], out=tmp_path / "out", manifold=("a", "b"))
