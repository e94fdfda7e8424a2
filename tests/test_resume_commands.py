"""What ``merge`` does when it is killed and run again, the other long commands do as well."""

from __future__ import annotations

import errno
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from geomerge import Checkpoint, Network, load_task, save_checkpoint
from geomerge.comparison import CompareOptions
from geomerge.errors import RunError
from geomerge.expert_options import DataOptions
from geomerge.merging import MergeOptions
from geomerge.pruning.options import ReconfigureOptions, SparsifyFiles, SparsifyOptions
from geomerge.pruning.sparsify import sparsify
from geomerge.runs import run_reconfigure, run_sparsify
from geomerge.runs.compare import run_compare
from geomerge.training import fine_tune
from geomerge.walks.state import StateFile


class Stop(BaseException):
    """As sudden as a kill, for a test that goes on."""


def content(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


class Stopper:
    """Stops at a gradient or a point, and writes states at half of the moments for that."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen, self.last = 0, 10**9
        draw, gradient = random.Random(0), Network.gradient

        def counted(network: Network, *given: Any) -> Any:
            self.count()
            return gradient(network, *given)

        monkeypatch.setattr(Network, "gradient", counted)
        due = property(lambda file: file._file is not None and draw.random() < 0.5)
        monkeypatch.setattr(StateFile, "due", due)

    def count(self, *_: object) -> None:
        """Count, also as what is told of a run's progress."""
        self.seen += 1
        if self.seen > self.last:
            raise Stop

    def interrupted(self, run: Callable[[], Any], shares: tuple[float, ...], whole: int) -> Any:
        """Stop a run after shares of what a whole one counts, then let it end."""
        for share in shares:
            self.seen, self.last = 0, int(share * whole)
            with pytest.raises(Stop):
                run()
        self.seen, self.last = 0, 10**9
        found = run()
        assert self.seen < whole
        return found


@pytest.fixture
def stopper(monkeypatch: pytest.MonkeyPatch) -> Stopper:
    return Stopper(monkeypatch)


def stack() -> nn.Sequential:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 10)
    )


@pytest.fixture(scope="module")
def small() -> Checkpoint:
    torch.manual_seed(0)
    network = Network(stack())
    train = load_task("digits").train
    *_, w = fine_tune(network, network.initial, train, steps=200, learning_rate=0.1)
    return Checkpoint(
        network.state_dict(w), {"architecture": "mlp", "task": "digits"}, source="small"
    )


SHARES = (0.0, 0.1, 0.3, 0.2, 0.2)
QUICK = {"steps": 40, "stages": 5, "points": 8}


@pytest.mark.parametrize(
    "words",
    [
        {"sparsity": 0.8, "learning_rate": 0.05, "paths": 2},
        {"sparsity": 0.7, "labels": True, "inputs": 300, "damping": 0.01},
        {"remove": {"1": 6, "3": 3}},
        {"remove": {"1": 4}, "choice": "rates", "budget": 0.05},
        {"params": 0.4},
        {"sparsity": 0.7, "walk": "pull"},
    ],
    ids=["weights", "labels, mixed", "units", "rates", "size", "pull"],
)
def test_an_interrupted_walk_to_a_plane_goes_on_with_the_same_bits(
    small: Checkpoint, tmp_path: Path, stopper: Stopper, words: dict[str, Any]
) -> None:
    options = SparsifyOptions(**QUICK, **words)
    folder, work = tmp_path / "run", tmp_path / "work"
    whole = sparsify(small, options, folder=tmp_path / "whole", progress=stopper.count)
    found = stopper.interrupted(
        lambda: sparsify(small, options, folder=folder, work=work, progress=stopper.count),
        SHARES,
        stopper.seen,
    )
    assert content(folder) == content(tmp_path / "whole")
    assert found.rows == whole.rows
    assert found.curve == whole.curve
    assert found.chosen.leg.steps == whole.chosen.leg.steps
    assert found.problem.cost.passes == whole.problem.cost.passes
    assert found.removed == whole.removed


PLAN = """
- {name: half, remove: {"1": 8}}
- {name: third, remove: {"3": 4}, restore: {"1": 4}}
- {name: back, restore: {"1": 4, "3": 4}}
"""


def test_an_interrupted_reconfiguration_goes_on_with_the_same_bits(
    small: Checkpoint, tmp_path: Path, stopper: Stopper
) -> None:
    save_checkpoint(tmp_path / "small.pt", small)
    (tmp_path / "plan.yaml").write_text(PLAN)
    options = ReconfigureOptions(**QUICK)

    def run(out: str) -> dict[str, Any]:
        given = tmp_path / "small.pt", tmp_path / "plan.yaml", options
        return run_reconfigure(*given, out=tmp_path / out, progress=stopper.count)[1]

    whole = run("whole")
    found = stopper.interrupted(lambda: run("run"), SHARES, stopper.seen)
    assert found == whole
    assert content(tmp_path / "run") == content(tmp_path / "whole")
    assert {p.name for p in tmp_path.iterdir()} == {"small.pt", "plan.yaml", "whole", "run"}


def test_an_interrupted_sparsification_is_the_same_run(
    small: Checkpoint, tmp_path: Path, stopper: Stopper
) -> None:
    save_checkpoint(tmp_path / "small.pt", small)
    options = SparsifyOptions(**QUICK, sparsity=0.8, paths=2)

    def run(out: str, files: SparsifyFiles | None = None) -> dict[str, Any]:
        return run_sparsify(
            tmp_path / "small.pt", options, files=files, out=tmp_path / out,
            progress=stopper.count,
        )[1]  # fmt: skip

    whole = run("whole")
    count, stopper.seen, stopper.last = stopper.seen, 0, stopper.seen // 2
    with pytest.raises(Stop):
        run("run", SparsifyFiles(pt=True))  # which decides no bit of the walk
    with pytest.raises(RunError, match="unfinished run of another recipe"):
        run_sparsify(
            tmp_path / "small.pt", SparsifyOptions(**QUICK, sparsity=0.7), out=tmp_path / "run"
        )
    found = stopper.interrupted(lambda: run("run"), (0.2,), count)
    assert found == whole
    assert content(tmp_path / "run") == content(tmp_path / "whole")


def timeless(report: Any) -> Any:
    """Return a report without the times in it."""
    if isinstance(report, dict):
        return {k: timeless(v) for k, v in report.items() if "second" not in k}
    return [timeless(one) for one in report] if isinstance(report, list) else report


def test_an_interrupted_comparison_makes_the_missing_rows_only(
    small: Checkpoint, tmp_path: Path, stopper: Stopper
) -> None:
    save_checkpoint(tmp_path / "a.pt", small)
    network = Network(stack())
    train = load_task("digits-permuted").train
    *_, w = fine_tune(network, network.initial, train, steps=200, learning_rate=0.1)
    other = Checkpoint(
        network.state_dict(w), small.meta | {"task": "digits-permuted"}, source="other"
    )
    save_checkpoint(tmp_path / "b.pt", other)
    methods = ("a", "ensemble", "slerp", "ties", "fine-tuning", "wise-ft", "joint-walk")
    data = DataOptions(manifold=("digits", "digits-permuted"))
    options = CompareOptions(MergeOptions(steps=6), only=methods, max_samples=4000)

    def run(out: str) -> dict[str, Any]:
        files = tmp_path / "a.pt", tmp_path / "b.pt"
        return run_compare(files, options, data, out=tmp_path / out, progress=stopper.count)[1]

    stopper.seen = 0
    whole = run("whole")
    count, stopper.seen, stopper.last = stopper.seen, 0, int(0.6 * stopper.seen)
    with pytest.raises(Stop):
        run("run")
    kept = {f.parent.name: StateFile(f).state for f in tmp_path.rglob("work/*/state")}
    assert {"a", "ensemble", "slerp", "ties"} <= set(kept) < set(methods)
    found = stopper.interrupted(lambda: run("run"), (), count)
    assert timeless(found) == timeless(whole)
    for row in found["rows"]:
        if row["name"] in kept:
            assert row["seconds"] == kept[row["name"]].values["seconds"]
    assert (tmp_path / "run" / "compare.png").read_bytes() == (
        tmp_path / "whole" / "compare.png"
    ).read_bytes()
    assert not (tmp_path / "run" / "work").exists()


@pytest.mark.parametrize("reason", [errno.ENOSPC, errno.EROFS], ids=["full", "read-only"])
def test_a_disk_that_takes_no_more_leaves_the_last_good_state(
    small: Checkpoint, tmp_path: Path, stopper: Stopper, reason: int
) -> None:
    save_checkpoint(tmp_path / "small.pt", small)
    options = SparsifyOptions(**QUICK, sparsity=0.8)

    def run(out: str) -> dict[str, Any]:
        return run_sparsify(tmp_path / "small.pt", options, out=tmp_path / out)[1]

    stopper.seen = 0
    whole = run("whole")
    count, files = stopper.seen, iter(range(20))

    def refuse(*given: Any, **named: Any) -> Any:
        if next(files, None) is None:
            raise OSError(reason, os.strerror(reason))
        return mkstemp(*given, **named)

    with pytest.MonkeyPatch.context() as patch:
        mkstemp = tempfile.mkstemp
        patch.setattr("geomerge.io.files.tempfile.mkstemp", refuse)
        with pytest.raises(RunError, match=f"cannot write .*{os.strerror(reason).lower()}"):
            run("run")
    assert StateFile(tmp_path / ".run.unfinished" / "work" / "walk-1" / "state").state.values
    assert stopper.interrupted(lambda: run("run"), (), count) == whole
    assert content(tmp_path / "run") == content(tmp_path / "whole")


# States are written whenever they can be, so that a kill finds walks anywhere.
COMMAND = (
    "import geomerge.walks.state as state; state._LEAST = state._SHARE = 0.0;"
    "from geomerge.cli.app import main; main()"
)
COMMANDS = {
    "sparsify": "sparsify a.pt --sparsity 0.9 --steps 120 --stages 6 --paths 2",
    "reconfigure": "reconfigure a.pt --plan plan.yaml --steps 40 --stages 3",
    "compare": "compare a.pt b.pt --manifold digits --manifold digits-permuted --steps 10 "
    "--only a,ensemble,slerp,zipit,ewc,sketch-walk,joint-walk --budget 10000",
    "stream": "stream split-digits --experiences 2 --epochs 2 --only geodesic,naive,ewc,gem",
}


def words(command: str, digits: Path, out: Path, before: str = "") -> list[str]:
    plan = PLAN.replace('"1"', '"layers.0"').replace('"3"', '"layers.1"')
    (digits / "plan.yaml").write_text(plan)
    given = [*COMMANDS[command].split(), "--out", str(out)]
    return [sys.executable, "-W", "ignore", "-c", before + COMMAND, *given]


def run(command: str, digits: Path, out: Path, before: str = "") -> tuple[int, str]:
    """Run a command and return its exit code and what it says on the error stream."""
    found = subprocess.run(
        words(command, digits, out, before), cwd=digits, capture_output=True, text=True, check=False
    )
    return found.returncode, found.stderr


def same_runs(one: Path, other: Path) -> bool:
    """Return whether two runs hold the same; of those with times in tables, in their reports."""
    if {p.name for p in one.iterdir()} != {p.name for p in other.iterdir()}:
        return False
    if (one / "table.md").exists():
        first, second = (json.loads((run / "report.json").read_text()) for run in (one, other))
        return bool(timeless(first) == timeless(second))
    return content(one) == content(other)


@pytest.mark.slow
@pytest.mark.parametrize("command", list(COMMANDS))
def test_kills_at_random_moments(
    digits: Path, tmp_path: Path, killed: Callable[..., tuple[Path, Path]], command: str
) -> None:
    whole, out = killed(lambda out: words(command, digits, out), digits, 2, (0.4, 0.9))
    assert same_runs(out, whole)
    assert {p.name for p in tmp_path.iterdir()} == {"out", "whole"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "most"),
    [("sparsify", 150_000), ("reconfigure", 150_000), ("compare", 30_000), ("stream", 3_000)],
)
def test_a_command_that_cannot_write_says_so_and_can_go_on(
    digits: Path, tmp_path: Path, command: str, most: int
) -> None:
    limit = f"import resource as r; r.setrlimit(r.RLIMIT_FSIZE, ({most}, {most}));"
    code, said = run(command, digits, tmp_path / "out", limit)
    assert code == 2
    assert said.startswith("geomerge: ")
    assert said.count("\n") == 1
    assert (tmp_path / ".out.unfinished" / "work" / "unfinished.json").is_file()
    assert run(command, digits, tmp_path / "out") == (0, "")
    assert {p.name for p in tmp_path.iterdir()} == {"out"}

    (tmp_path / "file").touch()
    code, said = run(command, digits, tmp_path / "file" / "out")
    assert code == 2
    assert said.startswith("geomerge: cannot write")
