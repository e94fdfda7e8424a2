"""A merge that is killed and run again ends with the same bits as one that was left alone."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from merges import merged_of, prepared_of, run_of

from geomerge import Checkpoint, load_checkpoint, load_task
from geomerge.data.digest import file_digests
from geomerge.errors import GeomergeError, OptionError, RunError
from geomerge.io.files import file_sha256
from geomerge.io.folders import resumable_folder
from geomerge.merging.choice import choose_preset
from geomerge.merging.cost import disk_bytes
from geomerge.monitor.progress import Progress
from geomerge.walks.state import StateFile

# The state is written after every step, so that a kill finds walks anywhere.
COMMAND = (
    "import geomerge.walks.state as state; state._LEAST = state._SHARE = 0.0;"
    "from geomerge.cli.app import main; main()"
)
SKETCH = ["--manifold", "digits", "--steps", "25"]
JOINT = ["--manifold", "digits", "--manifold", "digits-permuted", "--steps", "10"]
PAPER = ["--preset", "paper", "--manifold", "digits", "--steps", "15"]


def content(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


class Stop(BaseException):
    """As sudden as a kill, for a test that goes on."""


@pytest.fixture(scope="module")
def small(tiny: Path) -> list[Checkpoint]:
    return [load_checkpoint(tiny / f"{name}.pt") for name in "ab"]


BOTH = {"manifold": ("a=digits", "b=digits-permuted")}


@pytest.mark.parametrize(
    "words",
    [
        {**BOTH, "preset": "sketch", "steps": 12},
        pytest.param(
            {**BOTH, "preset": "sketch", "steps": 12, "learn": "damping", "budget": ("b=0.02",)},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {**BOTH, "preset": "joint", "steps": 6, "learn": "damping"}, marks=pytest.mark.slow
        ),
        {**BOTH, "preset": "joint", "steps": 6, "budget": ("a=0.02",)},
        {"manifold": ("digits",), "preset": "paper", "steps": 8, "budget": ("a=0.01",)},
        {"manifold": ("digits",), "preset": "surrogate", "steps": 10, "damping": 1e-4},
    ],
    ids=["sketch", "sketch learned", "joint learned", "joint", "paper", "surrogate"],
)
def test_an_interrupted_merge_goes_on_with_the_same_bits(
    small: list[Checkpoint],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: dict[str, object],
) -> None:
    monkeypatch.setattr("geomerge.walks.state._LEAST", 0.0)
    monkeypatch.setattr("geomerge.walks.state._SHARE", 0.0)
    options = {**words, "points": 8}  # type: ignore[arg-type]
    taken: list[int] = []

    def stop_after(steps: int) -> Callable[[Progress], None]:
        def stop(_: Progress) -> None:
            taken.append(1)
            if len(taken) == steps:
                raise Stop

        return stop

    whole = merged_of(small, options, folder=tmp_path / "whole", progress=stop_after(10**9))
    steps = len(taken)
    for share in (0.0, 0.3, 1.0):
        taken.clear()
        with pytest.raises(Stop):
            merged_of(
                small, options, folder=tmp_path / "path", work=tmp_path / "work",
                progress=stop_after(1 + round(share * steps / 3)),
            )  # fmt: skip
    taken.clear()
    merged = merged_of(
        small, options, folder=tmp_path / "path", work=tmp_path / "work",
        progress=stop_after(10**9),
    )  # fmt: skip
    assert len(taken) < steps
    assert content(tmp_path / "path") == content(tmp_path / "whole")
    assert merged.picked.steps == whole.picked.steps
    assert merged.diagonal_only == whole.diagonal_only


def test_an_interrupted_merge_needs_room_only_for_what_it_has_not_stored(
    small: list[Checkpoint], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"manifold": ("digits",), "preset": "paper", "steps": 8, "points": 8}
    needed = disk_bytes(choose_preset(prepared_of(small, options)))[1]

    def stop(_: Progress) -> None:
        raise Stop

    work = tmp_path / "work"
    with pytest.raises(Stop):
        merged_of(small, options, folder=tmp_path / "path", work=work, progress=stop)
    (work / "points").write_bytes(bytes(1000))
    stored = sum(file.stat().st_size for file in work.rglob("*") if file.is_file())
    free = SimpleNamespace(free=needed - stored)
    monkeypatch.setattr("shutil.disk_usage", lambda _: free)
    merged_of(small, options, folder=tmp_path / "path", work=work)
    with pytest.raises(OptionError, match="GB of disk"):
        merged_of(small, options, folder=tmp_path / "other", work=tmp_path / "new")


@pytest.mark.skipif(sys.platform != "linux", reason="a second disk is needed")
def test_a_merge_needs_room_for_temporary_files_on_the_disk_of_its_points(
    small: list[Checkpoint], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"manifold": ("digits",), "preset": "paper", "steps": 8, "points": 8}
    needed = disk_bytes(choose_preset(prepared_of(small, options)))[1]
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=needed))
    monkeypatch.setattr("geomerge.io.paged.LEAST", 1)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(OptionError, match="GB of temporary files"):
        merged_of(small, options, folder=tmp_path / "path")
    monkeypatch.setattr("tempfile.tempdir", "/proc")  # no room there: vectors lie in memory
    merged_of(small, options, folder=tmp_path / "other")


@pytest.mark.slow
@pytest.mark.parametrize("words", [SKETCH, JOINT, PAPER], ids=["sketch", "joint", "paper"])
def test_kills_at_random_moments(
    digits: Path, killed: Callable[..., tuple[Path, Path]], words: list[str]
) -> None:
    def command(out: Path) -> list[str]:
        return [
            sys.executable, "-c", COMMAND, "merge", "a.pt", "b.pt", *words, "--out", str(out),
        ]  # fmt: skip

    whole, out = killed(command, digits, 4, (0.3, 0.7))
    assert content(out) == content(whole)


def test_another_recipe_does_not_go_on(digits: Path, tmp_path: Path) -> None:
    files = [digits / "a.pt", digits / "b.pt"]

    def stop(_: object) -> None:
        raise Stop

    with pytest.raises(Stop):
        run_of(
            files, {"manifold": ("digits",), "steps": 5}, out=tmp_path / "out",
            progress=stop,
        )  # fmt: skip
    with pytest.raises(RunError, match=r"another recipe.*\(another merge steps\)"):
        run_of(files, {"manifold": ("digits",), "steps": 6}, out=tmp_path / "out")


def test_changed_files_of_data_are_another_recipe(digits: Path, tmp_path: Path) -> None:
    files, task = [digits / "a.pt", digits / "b.pt"], load_task("digits")
    table = tmp_path / "mine.npz"
    x, y = task.train.inputs.raw.numpy()[:200], task.train.labels.numpy()[:200]

    def stop(_: object) -> None:
        raise Stop

    def run(labels: Any, progress: Any = None) -> Path:
        np.savez(table, x=x, y=labels)
        options = {"manifold": (str(table),), "steps": 3}
        return run_of(files, options, out=tmp_path / "out", progress=progress)[0]

    with pytest.raises(Stop):
        run(y, stop)
    with pytest.raises(RunError, match=r"unfinished run of another recipe.*\(another data .*mine"):
        run(y[::-1])
    recipe = json.loads((run(y) / "recipe.json").read_text())
    assert recipe["data"] == {str(table): file_sha256(table)}
    with pytest.raises(RunError, match="finished run of another recipe"):
        run(y[::-1])


def test_digests_are_of_the_files_that_are_read(tmp_path: Path) -> None:
    real, folder = tmp_path / "real", tmp_path / "classes"
    (folder / "train").mkdir(parents=True)
    for k in "01":
        (real / k).mkdir(parents=True)
        (real / k / "0.png").write_bytes(b"1")
        (folder / "train" / k).symlink_to(real / k)
    before = file_digests([str(folder)])
    (folder / ".DS_Store").write_bytes(b"1")
    (folder / "train" / "notes.txt").write_bytes(b"1")
    assert file_digests([f"{folder}@0"]) == before
    (real / "1" / "0.png").write_bytes(b"12")
    assert file_digests([str(folder)]).keys() == before.keys()
    assert file_digests([str(folder)]) != before

    for name in ("mine-train.csv", "mine-test.csv", "mine-train.npz", "mine-test.npz"):
        (tmp_path / name).write_bytes(name.encode())
    table, arrays = tmp_path / "mine-train.csv", tmp_path / "mine-train.npz"
    other = tmp_path / "mine-test.csv"
    assert file_digests([str(table)]) == {str(f): file_sha256(f) for f in (table, other)}
    assert file_digests([str(arrays)]) == {str(arrays): file_sha256(arrays)}
    unknown = ["digits", "package:factory", "no-such-file.csv", f"{table}@3-1"]
    assert file_digests(unknown) == {}


def test_two_processes_do_not_share_a_run(tmp_path: Path) -> None:
    with (
        resumable_folder(tmp_path / "out", {"x": 1}),
        pytest.raises(RunError, match="another process"),
        resumable_folder(tmp_path / "out", {"x": 1}),
    ):
        pass


def test_what_the_user_must_put_right_leaves_nothing_behind(tmp_path: Path) -> None:
    with (
        pytest.raises(GeomergeError, match="no"),
        resumable_folder(tmp_path / "some" / "out", {"x": 1}),
    ):
        raise GeomergeError("no")
    assert not any(tmp_path.iterdir())


def test_a_full_disk_leaves_the_last_good_state(tmp_path: Path) -> None:
    with (
        pytest.raises(OSError, match="full"),
        resumable_folder(tmp_path / "out", {"x": 1}) as stage,
    ):
        (stage / "kept").write_text("state")
        raise OSError("disk full")
    with resumable_folder(tmp_path / "out", {"x": 1}) as stage:
        assert (stage / "kept").read_text() == "state"
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"kept"}


def test_a_mistake_on_going_on_leaves_the_walks(tmp_path: Path) -> None:
    def go_on(error: BaseException | None) -> Path:
        with resumable_folder(tmp_path / "out", {"x": 1}) as stage:
            (stage / "work" / "walk").mkdir(parents=True, exist_ok=True)
            (stage / "work" / "walk" / "state").write_text("far")
            if error is not None:
                raise error
        return stage

    for error in (Stop(), GeomergeError("the data is not there"), RunError("nor is the disk")):
        with pytest.raises(type(error)):
            go_on(error)
        assert (tmp_path / ".out.unfinished" / "work" / "walk" / "state").is_file()
    go_on(None)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_path_is_put_together_anew_beside_files_of_others(
    small: list[Checkpoint], tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    options = {"manifold": ("digits",), "preset": "paper", "steps": 5, "points": 8}
    for _ in range(2):
        merged_of(small, options, folder=tmp_path / "mine", work=tmp_path / "work")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years"
    with pytest.raises(OptionError, match="outside of the path's folder"):
        merged_of(small, options, folder=tmp_path / "mine", work=tmp_path / "mine" / "work")


def test_the_state_of_a_long_walk_can_be_read(tmp_path: Path) -> None:
    file = StateFile(tmp_path / "state")
    file.state.part("leg").values["steps"] = [{"step": k, "norm": 0.1 + k} for k in range(200_000)]
    file.state.tensors["w"] = torch.randn(3)
    file.state.part("leg").tensors["w"] = file.state.tensors["w"]
    file.write()
    again = StateFile(tmp_path / "state").state
    assert again.part("leg").values == file.state.part("leg").values
    assert torch.equal(again.part("leg").tensors["w"], file.state.tensors["w"])


@pytest.mark.slow
def test_where_no_more_can_be_written_the_run_stops_and_can_go_on(
    digits: Path, tmp_path: Path
) -> None:
    limit = "import resource as r; r.setrlimit(r.RLIMIT_FSIZE, (200_000, 200_000));"
    words = ["merge", "a.pt", "b.pt", *SKETCH[:2], "--steps", "3", "--out", tmp_path / "out"]
    found = subprocess.run(
        [sys.executable, "-c", limit + COMMAND, *map(str, words)], cwd=digits, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert found.returncode == 2
    assert "cannot write" in found.stderr
    assert found.stderr.count("\n") == 1
    assert (tmp_path / ".out.unfinished" / "work" / "unfinished.json").is_file()
    again = subprocess.run(
        [sys.executable, "-c", COMMAND, *map(str, words)], cwd=digits, capture_output=True,
        check=False,
    )  # fmt: skip
    assert again.returncode == 0
    assert {p.name for p in tmp_path.iterdir()} == {"out"}
