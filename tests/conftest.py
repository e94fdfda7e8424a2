"""Shared cases: tiny networks in float64, and two trained networks on scikit-learn's digits."""

from __future__ import annotations

import io
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import chdir, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

# The networks here are tiny: a second thread costs more than it gives, in subprocesses too.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from filelock import FileLock
from merges import run_of
from torch import nn

from geomerge import Checkpoint, Network, load_task, save_checkpoint
from geomerge.networks.batches import Batch
from geomerge.pruning.options import ReconfigureOptions, SparsifyFiles, SparsifyOptions
from geomerge.runs import run_reconfigure, run_sparsify
from geomerge.training import fine_tune, train_checkpoint


def small_mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))


def small_cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 3, 2, stride=2), nn.Tanh(), nn.Flatten(), nn.Linear(12, 3, bias=False)
    )


def small_normed() -> nn.Module:
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64, 6),
        nn.LayerNorm(6),
        nn.Linear(6, 3),
    )
    with torch.no_grad():
        net[1].running_mean.uniform_(-0.3, 0.3)
        net[1].running_var.uniform_(0.5, 2)
    return net


class TwoInputs(nn.Module):
    """Takes two inputs and returns a tuple whose first entry are the logits."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 4)
        self.second = nn.Linear(2, 4, bias=False)
        self.head = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = (self.first(x) + self.second(t)).tanh()
        return self.head(hidden), hidden


class Output(NamedTuple):
    loss: None
    logits: torch.Tensor


class Tokens(nn.Module):
    """Takes tokens and their mask by name and returns an object with logits.

    It has a buffer that is in no state dict.
    """

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(6, 4)
        self.hidden = nn.Linear(4, 4)
        self.head = nn.Linear(4, 3)
        self.register_buffer("scale", torch.tensor([1.0, 0.5, 0.25, 2.0]), persistent=False)

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor) -> Output:
        hidden = self.hidden(self.embedding(tokens) * self.scale).tanh()
        weight = mask.to(hidden.dtype).unsqueeze(2)
        mean = (hidden * weight).sum(dim=1) / weight.sum(dim=1)
        return Output(None, self.head(mean))


def draw_floats(*shape: int) -> Callable[[int], Batch]:
    return lambda count: torch.randn(count, *shape, dtype=torch.float64)


def draw_tokens(count: int) -> Batch:
    lengths = torch.randint(1, 5, (count, 1))
    return {
        "tokens": torch.randint(0, 6, (count, 4)),
        "mask": (torch.arange(4) < lengths).long(),
    }


def draw_pairs(count: int) -> Batch:
    return (
        torch.randn(count, 5, dtype=torch.float64),
        torch.randn(count, 2, dtype=torch.float64),
    )


CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[int], Batch]]] = {
    "mlp": (small_mlp, draw_floats(5)),
    "cnn": (small_cnn, draw_floats(2, 4, 4)),
    "normed": (small_normed, draw_floats(2, 4, 4)),
    "two-inputs": (TwoInputs, draw_pairs),
    "tokens": (Tokens, draw_tokens),
}


@pytest.fixture(params=list(CASES))
def case(request: pytest.FixtureRequest) -> tuple[Network, Batch]:
    """A network in float64 and a batch of its inputs."""
    make, draw = CASES[request.param]
    torch.manual_seed(0)
    network = Network(make().double())
    return network, draw(7)


MadeOnce = Callable[[str, Callable[[Path], None]], Path]


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> MadeOnce:
    """Return what has a folder filled by the first of pytest's processes that asks for it.

    It takes the folder's name and what fills it, and returns the folder, in which tests only read.
    """

    def made_once(name: str, fill: Callable[[Path], None]) -> Path:
        base = tmp_path_factory.getbasetemp()
        if "PYTEST_XDIST_WORKER" in os.environ:  # the other processes have folders beside it
            base = base.parent
        folder, whole = base / f"shared-{name}", base / f"shared-{name}.whole"
        with FileLock(base / f"shared-{name}.lock"):
            if not whole.exists():
                shutil.rmtree(folder, ignore_errors=True)  # of one that was stopped
                folder.mkdir()
                fill(folder)
                whole.touch()
        return folder

    return made_once


def train_digits(folder: Path) -> None:
    for k, (name, task) in enumerate((("a", "digits"), ("b", "digits-permuted"))):
        train_checkpoint(
            folder / f"{name}.pt", "lenet-300-100", load_task(task), epochs=20,
            learning_rate=0.02, seed=k,
        )  # fmt: skip


@pytest.fixture(scope="session")
def digits(made_once: MadeOnce, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a.pt (digits) and b.pt (permuted digits), both with sketches."""
    folder = tmp_path_factory.mktemp("digits")  # its own, for commands that work beside the files
    return shutil.copytree(made_once("digits", train_digits), folder, dirs_exist_ok=True)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a.pt (digits) and b.pt (permuted digits), of 1 210 weights each."""
    folder = tmp_path_factory.mktemp("tiny")
    for seed, (name, task) in enumerate((("a", "digits"), ("b", "digits-permuted"))):
        torch.manual_seed(seed)
        module = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
        network = Network(module)
        train = load_task(task).train
        *_, w = fine_tune(network, network.initial, train, steps=200, learning_rate=0.1)
        meta = {"task": task, "architecture": "mlp"}
        save_checkpoint(folder / f"{name}.pt", Checkpoint(network.state_dict(w), meta))
    return folder


@pytest.fixture(scope="session")
def tiny_runs(made_once: MadeOnce, tiny: Path) -> Path:
    """A folder with a.pt, b.pt and the runs ``merge``, ``separate``, ``sparsify``, ``moves``."""
    return made_once("runs", lambda folder: run_tiny(tiny, folder))


def run_tiny(tiny: Path, folder: Path) -> None:
    quick = {"steps": 20, "stages": 2, "seed": 1}
    shutil.copytree(tiny, folder, dirs_exist_ok=True)
    both = ("a=digits", "b=digits-permuted")
    files = [folder / "a.pt", folder / "b.pt"]
    for name, options in {
        "merge": {"manifold": both, "preset": "sketch", "damping": 1e-4, "steps": 12, "points": 8},
        "separate": {"manifold": both, "head": "separate", "steps": 4, "points": 8},
    }.items():
        run_of(files, options, out=folder / name)
    removal = SparsifyOptions(**quick, remove={"1": 4})
    run_sparsify(files[0], removal, files=SparsifyFiles(shrink=True), out=folder / "sparsify")
    plan = folder / "plan.yaml"
    plan.write_text('- {name: half, remove: {"1": 8}}\n- {name: back, restore: {"1": 4}}\n')
    run_reconfigure(files[0], plan, ReconfigureOptions(**quick), out=folder / "moves")


Killed = Callable[[Callable[[Path], list[str]], Path, int, tuple[float, float]], tuple[Path, Path]]


Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def geomerge() -> Command:
    """Return what runs a command line in a folder, in this process: torch is imported already."""

    def run(*words: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
        from geomerge.cli.app import main

        given, code, before = ["geomerge", *map(str, words)], 0, set(sys.modules)
        with (
            redirect_stdout(io.StringIO()) as out,
            redirect_stderr(io.StringIO()) as err,
            chdir(cwd),
            patch.object(sys, "argv", given),
            patch.object(sys, "path", [*sys.path]),
        ):
            try:
                main()
            except SystemExit as ended:
                code = int(ended.code or 0)
            finally:  # another test's user may have a module of the same name
                for name in sys.modules.keys() - before:
                    if str(vars(sys.modules[name]).get("__file__")).startswith(str(cwd)):
                        del sys.modules[name]
        return subprocess.CompletedProcess(given, code, out.getvalue(), err.getvalue())

    return run


@pytest.fixture
def killed(tmp_path: Path) -> Killed:
    """Return what runs a command twice and returns where: left alone, and with kills.

    It takes the command of the run's folder, where it works, how often it is killed, and after
    which share of its time.
    """

    def killed(
        command: Callable[[Path], list[str]], cwd: Path, kills: int, shares: tuple[float, float]
    ) -> tuple[Path, Path]:
        def ends(out: Path, seconds: float | None) -> bool:
            silent = subprocess.DEVNULL
            process = subprocess.Popen(command(out), cwd=cwd, stdout=silent, stderr=silent)
            try:
                assert process.wait(seconds) == 0
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.wait()
                return False
            return True

        whole, out = tmp_path / "whole", tmp_path / "out"
        began = time.monotonic()
        ends(whole, None)
        took, draw = time.monotonic() - began, random.Random(0)
        while kills:
            began = time.monotonic()
            if ends(out, draw.uniform(*shares) * took):
                took = min(took, time.monotonic() - began)  # the machine may be less busy now
                shutil.rmtree(out)  # once more from the beginning
            else:
                kills -= 1
        ends(out, None)
        return whole, out

    return killed


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of MNIST, Fashion-MNIST and CIFAR-10, or a skip."""
    root = Path(os.environ.get("GEOMERGE_DATA", "data"))
    if not (root / "MNIST").is_dir():
        pytest.skip(f"no MNIST under {root}: set GEOMERGE_DATA to run the tests on real data")
    return root
