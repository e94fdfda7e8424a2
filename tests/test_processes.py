from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from process_groups import run
from torch import nn

import geomerge as gm
from geomerge import processes
from geomerge.continual import Experience, merge_expert, remember
from geomerge.continual.options import ContinualOptions
from geomerge.data import Inputs
from geomerge.errors import NumericalError, OptionError, ProcessError, RunError
from geomerge.io import files
from geomerge.metrics import KroneckerMetric, measure_metric
from geomerge.processes import Team, alone, team, together
from geomerge.training import train_checkpoint
from geomerge.walks import state
from geomerge.walks.objectives import KLToTeacher, log_probabilities


def small(seed: int, wide: bool = False) -> nn.Module:
    torch.manual_seed(seed)
    first = nn.Linear(600, 12) if wide else nn.Linear(64, 12)
    return nn.Sequential(nn.Flatten(), first, nn.Tanh(), nn.Linear(12, 10)).double()


def pieces() -> dict[str, Any]:
    """Metric, gradient and accuracy of a network, shared or not."""
    task = gm.load_task("digits")
    network = gm.Network(small(0))
    w, inputs = network.initial, task.train.inputs.of_dtype(torch.float64)
    metric = measure_metric(network, w, inputs)
    assert isinstance(metric, KroneckerMetric)
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(50, 600, generator=generator, dtype=torch.float64)
    other = gm.Network(small(1, wide=True))
    wide = measure_metric(other, other.initial, rows)
    teacher = log_probabilities(network, gm.Network(small(2)).initial, inputs)
    loss, v = KLToTeacher(network, teacher, inputs, 101, 0)(w)
    expert = gm.Expert.from_module(small(0), task)
    v2 = torch.linspace(-1, 1, metric.n, dtype=torch.float64)
    v3 = torch.linspace(-1, 1, wide.n, dtype=torch.float64)
    return {
        "metric": metric.mv(v2), "wide": wide.mv(v3), "loss": loss, "gradient": v,
        "accuracy": expert.accuracy(),
    }  # fmt: skip


def _shared_pieces(rank: int) -> dict[str, Any]:
    with together() as mates:
        assert mates is not None
        assert (mates.rank, mates.size) == (rank, 2)
        found = pieces()
        with alone():
            assert team() is None
        found["text"] = mates.tell("first's" if rank == 0 else "")
    assert team() is None
    return found


def test_two_processes_share_metrics_gradients_and_evaluations(tmp_path: Path) -> None:
    one, other = run(_shared_pieces, 2, tmp_path)
    assert other.pop("text") == one.pop("text") == "first's"
    for name, alone_ in pieces().items():
        if not isinstance(alone_, torch.Tensor):
            assert one[name] == pytest.approx(alone_, rel=1e-12)
            assert one[name] == other[name]
            continue
        assert torch.equal(one[name], other[name])
        torch.testing.assert_close(one[name], alone_, rtol=1e-9, atol=1e-12)


def test_the_costliest_pieces_are_dealt_first() -> None:
    mates = Team.__new__(Team)
    mates.rank, mates.size = 1, 2
    assert mates.owners([1.0, 5.0, 3.0, 3.0]) == [0, 0, 1, 1]
    assert [mates.owns(k) for k in range(3)] == [False, True, False]
    assert mates.share(5) == slice(2, 5)


def _end_of_another(rank: int, how: str) -> str:
    began = time.monotonic()
    try:
        with together() as mates:
            assert mates is not None
            if rank == 1 and how == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if rank == 1:
                raise OSError("no space left on device")
            mates.wait()
    except (ProcessError, OSError) as error:
        assert time.monotonic() - began < 60
        return f"{type(error).__name__}: {error}"
    return "went on"


@pytest.mark.parametrize("how", ["killed", "full disk"])
def test_when_a_process_ends_the_others_end_with_a_sentence(how: str, tmp_path: Path) -> None:
    said = run(_end_of_another, 2, tmp_path, how)[0]
    assert said.startswith("ProcessError: one of the processes that compute together has ended")
    assert "\n" not in said


def _other_version(rank: int) -> str:
    version = processes.version
    processes.version = lambda name: "9" if rank else version(name)  # type: ignore[attr-defined]
    try:
        with together():
            return "went on"
    except OptionError as error:
        return str(error)


def test_processes_of_different_versions_are_refused(tmp_path: Path) -> None:
    first, second = run(_other_version, 2, tmp_path)
    assert "1 of the others another version" in first
    assert second.startswith("process 1 runs geomerge 9 and torch")


def _not_finite(rank: int) -> list[str]:
    network = gm.Network(small(0))
    rows = torch.randn(60, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rows[45] = float("nan")  # in the half of process 1
    said = []
    for what in ("metric", "gradient"):
        with together() as mates:
            assert mates is not None
            inputs = Inputs(rows, gm.load_task("digits").train.inputs.normalisation)
            try:
                if what == "metric":
                    measure_metric(network, network.initial, rows)
                else:
                    targets = torch.zeros(60, 10, dtype=torch.float64)
                    loss, _ = KLToTeacher(network, targets, inputs, 60, 0)(network.initial)
                    said.append(str(loss))
            except NumericalError as error:
                said.append(str(error))
    return said


def test_a_number_that_is_not_finite_in_one_process_stops_all(tmp_path: Path) -> None:
    for metric, loss in run(_not_finite, 2, tmp_path):
        assert "not finite" in metric or "failed in process" in metric
        assert loss == "nan"


def experts(dtype: torch.dtype = torch.float64) -> list[gm.Expert]:
    made = []
    for k, name in enumerate(("digits@0-4", "digits@5-9")):
        module, task = small(k).to(dtype), gm.load_task(name)
        x, y = task.train.inputs.of_dtype(dtype).batch(slice(None)), task.train.labels
        optimizer = torch.optim.Adam(module.parameters(), 0.01)
        for _ in range(40):
            optimizer.zero_grad()
            nn.functional.cross_entropy(module(x), y).backward()
            optimizer.step()
        made.append(gm.Expert.from_module(module, task))
    return made


def _merged(rank: int, folder: str, preset: str, dtype: torch.dtype) -> list[torch.Tensor]:
    found = gm.merge(experts(dtype), steps=8, preset=preset, folder=Path(folder) / "path")
    if rank == 0:  # the first alone has a work folder; the path's files are one set
        assert (Path(folder) / "path" / "index.json").is_file()
    return [found.w, found.path.at(0.3), torch.tensor(list(found.accuracies.values()))]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "preset", "dtype"),
    [
        (2, "joint", torch.float64),
        (3, "joint", torch.float64),
        (2, "sketch", torch.float64),
        (3, "joint", torch.float32),
    ],
)
def test_a_merge_of_several_processes_is_that_of_one(
    size: int, preset: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    (tmp_path / "alone").mkdir()
    whole = _merged(1, str(tmp_path / "alone"), preset, dtype)
    for found in run(_merged, size, tmp_path, str(tmp_path), preset, dtype):
        for one, other in zip(found, whole, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


def _on_a_full_disk(rank: int, place: str, room: int) -> list[torch.Tensor] | str:
    """The merge, or its error where the first process has room for some files alone."""
    save, written, began = files.save_file, [0], time.monotonic()

    def saved(*given: Any) -> None:
        written[0] += 1
        if written[0] > room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save(*given)

    files.save_file, state._LEAST, state._SHARE = saved, 0.0, 0.0
    folder = Path(place)
    try:
        found = gm.merge(experts(), steps=8, folder=folder / "path", work=folder / "work")
    except (ProcessError, RunError) as error:
        assert time.monotonic() - began < 60
        return f"{type(error).__name__}: {error}"
    return [found.w, torch.tensor(list(found.accuracies.values()))]


@pytest.mark.slow
def test_a_merge_goes_on_after_a_full_disk(tmp_path: Path) -> None:
    def merged(room: int, place: str) -> list[Any]:
        group = tmp_path / f"group-{room}-{place}"
        group.mkdir()
        (tmp_path / place).mkdir(exist_ok=True)
        return run(_on_a_full_disk, 2, group, str(tmp_path / place), room)

    for room in (5, 21):
        first, second = merged(room, "full")
        assert re.fullmatch(
            r"RunError: cannot write .*full.* \(no space left on device\); make room and run the "
            "command again", first,
        )  # fmt: skip
        assert second.startswith("ProcessError: one of the processes that compute together has")
        assert "\n" not in second
        assert list((tmp_path / "full" / "work").rglob("state"))
    for found, whole in zip(merged(1000, "full"), merged(1000, "whole"), strict=True):
        for one, other in zip(found, whole, strict=True):
            assert torch.equal(one, other)


def _sparse(rank: int, folder: str) -> list[torch.Tensor]:
    found = gm.sparsify(
        experts(torch.float32)[0], sparsity=0.5, stages=2, steps=4, folder=Path(folder) / "sparse"
    )
    assert found.path.folder == Path(folder) / "sparse" / "path"
    return [found.expert.weights, torch.tensor(list(found.accuracies.values()))]


@pytest.mark.slow
def test_a_sparsification_of_several_processes_is_that_of_one(tmp_path: Path) -> None:
    (tmp_path / "alone").mkdir()
    whole = _sparse(1, str(tmp_path / "alone"))
    for found in run(_sparse, 2, tmp_path, str(tmp_path)):
        assert torch.equal(found[0] == 0, whole[0] == 0)
        for one, other in zip(found, whole, strict=True):  # single precision, four steps
            torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def _continued(rank: int) -> list[torch.Tensor]:
    a, b = experts(torch.float32)
    network, options = a.network, ContinualOptions(epochs=1, pseudo_inputs=200, rank=8, batch=50)
    assert a.inputs is not None
    assert b.inputs is not None
    memory = [remember(network, a.weights, Experience(a.inputs, "first"), options)]
    second = Experience(b.inputs, "second")
    w, report = merge_expert(a.weights, b.weights, second, memory, lambda _: network, options)
    return [w, torch.tensor([point.value for point in report.path])]


@pytest.mark.slow
def test_a_continual_merge_of_several_processes_is_that_of_one(tmp_path: Path) -> None:
    whole = _continued(1)
    for found in run(_continued, 2, tmp_path):
        for one, other in zip(found, whole, strict=True):  # single precision, one epoch
            torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def _different(rank: int) -> str:
    two = experts()
    two[0] = replace(two[0], weights=two[0].weights + rank)
    try:
        gm.merge(two, steps=1)
    except OptionError as error:
        return str(error)
    return "merged"


def test_processes_with_different_networks_are_refused(tmp_path: Path) -> None:
    for said in run(_different, 2, tmp_path):
        assert said == (
            "the processes that compute together have different networks or options; give all of "
            "them the same"
        )


@pytest.mark.slow
def test_torchrun_merges_files_and_the_first_process_alone_writes(tmp_path: Path) -> None:
    for k, name in enumerate(("digits@0-4", "digits@5-9")):
        file = tmp_path / f"{'ab'[k]}.safetensors"
        train_checkpoint(file, "mlp", gm.load_task(name), seed=k, epochs=1)
    words = ["-m", "geomerge", "merge", "a.safetensors", "b.safetensors"]
    options = [
        "--steps",
        "4",
        "--manifold",
        "digits@0-4",
        "--manifold",
        "digits@5-9",
        "--out",
        "run",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", *words, *options],
        cwd=tmp_path, capture_output=True, text=True, timeout=300,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("written to run") == 1
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["a.safetensors", "b.safetensors", "run"]
    assert (tmp_path / "run" / "report.json").is_file()
