"""Estimated times of `geomerge check`, and measured times of the runs.

    python benchmarks/estimates.py --work build/bench                  # all cases
    python benchmarks/estimates.py --work build/bench --only "digits"  # those whose names begin so

Each case is a process of one thread: it checks what it is about to do, and then does all that the
command would, report included. Times are processor seconds of that process, of the estimate too
(`time.perf_counter` is replaced), so that other processes on the machine change neither: with one
thread and a free machine they are the seconds on the wall. Files of small networks are made in
--work; MNIST, CIFAR-10, ResNet20 and the BERTs are read from GEOMERGE_DATA.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias
from unittest.mock import patch

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from common import Rows, expert, write_results
from torch import Tensor, nn

import geomerge as gm
from geomerge.expert_options import DataOptions
from geomerge.io.checkpoint import save_checkpoint
from geomerge.merging.check import check_merge
from geomerge.metrics.sketch import sketch_seconds
from geomerge.options import option_fields, replace_options
from geomerge.runs import run_merge
from geomerge.runs.folder import RunFolder

DATA = Path(os.environ.get("GEOMERGE_DATA", "data"))
IMAGES = {"train": 60, "test": 30}  # of each class, in the folders of the two ResNet20
SKETCH = "sketch of a BERT"
TEXTS = {"train": 100, "test": 100}  # of each task of the two BERTs


class Convolutions(nn.Module):
    """Two convolutions over the rows of an image of digits."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv1d(8, 16, 3, padding=1), nn.ReLU(), nn.Conv1d(16, 16, 3, padding=1), nn.ReLU(),
            nn.Flatten(), nn.Linear(128, 10),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of images (B, 64)."""
        logits: Tensor = self.net(x.view(-1, 8, 8))
        return logits


class Recurrent(nn.Module):
    """A GRU in both directions over the rows of an image of digits."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.GRU(8, 24, batch_first=True, bidirectional=True)
        self.out = nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of images (B, 64)."""
        logits: Tensor = self.out(self.rows(x.view(-1, 8, 8))[0].mean(1))
        return logits


def pair(work: Path, arch: str, *tasks: str) -> list[str]:
    """Return the files of two networks, one for each task."""
    return [expert(work, arch, task, seed).source for seed, task in enumerate(tasks)]


def images(work: Path) -> list[str]:
    """Return folders of a few images of the classes of each ResNet20."""
    classes = ("airplane automobile bird cat deer", "dog frog horse ship truck")
    folders = [work / f"images-{k}" for k in (0, 1)]
    with zipfile.ZipFile(DATA / "cifar10-images.zip") as whole:
        names = sorted(whole.namelist())
        for folder, known in zip(folders, classes, strict=True):
            for split, count in IMAGES.items():
                for label in known.split():
                    chosen = [n for n in names if f"{split}/{label}/" in n and n[-1] != "/"][:count]
                    place = folder / split / label
                    place.mkdir(parents=True, exist_ok=True)
                    for name in chosen:
                        (place / Path(name).name).write_bytes(whole.read(name))
    return [str(folder) for folder in folders]


def texts(work: Path) -> list[str]:
    """Return folders with the first texts of the tasks of two BERTs."""
    for name in ("noun", "verb"):
        for split, count in TEXTS.items():
            lines = (DATA / "wordnet-glosses" / f"{name}-{split}.csv").read_text().splitlines()
            (work / f"{name}-{split}.csv").write_text("\n".join(lines[: count + 1]) + "\n")
    return [str(work / f"{name}-train.csv") for name in ("noun", "verb")]


def digits(work: Path, module: type[nn.Module]) -> list[str]:
    """Return the files of two untrained networks: no time depends on what they know."""
    files = [work / f"{module.__name__}-{seed}.safetensors" for seed in (0, 1)]
    for seed, file in enumerate(files):
        torch.manual_seed(seed)
        save_checkpoint(file, gm.Checkpoint(module().state_dict(), {"architecture": None}))
    return [str(file) for file in files]


def berts(*names: str) -> list[str]:
    return [str(DATA / "tiny-bert-glosses" / name) for name in names]


BOTH = ("digits", "digits-permuted")
HUNDREDS = ("mnist", "fashion-mnist")


Inputs: TypeAlias = tuple[list[str], dict[str, Any], str | None]


def merges(work: Path) -> dict[str, Callable[[], Inputs]]:
    """Return the files of each merge, its options and those of data, and a common ancestor."""
    halves = [
        str(DATA / "resnet20-cifar" / f"{name}.pt") for name in ("airplane-to-deer", "dog-to-truck")
    ]
    return {
        "BERTs, 64 inputs of each": lambda: (
            berts("noun", "verb"),
            {"manifold": tuple(texts(work)), "max_inputs": 64, "head": "separate", "steps": 10},
            berts("base")[0]),
        "ResNet20, 300 images of each, 10 steps": lambda: (
            halves, {"manifold": tuple(images(work)), "arch": "nets:resnet20", "steps": 10,
                     "head": "separate"}, None),
        "digits mlp, inputs of one": lambda: (
            pair(work, "mlp", *BOTH), {"manifold": BOTH[:1]}, None),
        "digits mlp, inputs of both": lambda: (
            pair(work, "mlp", *BOTH), {"manifold": BOTH}, None),
        "digits Conv1d, 30 steps": lambda: (
            digits(work, Convolutions),
            {"manifold": BOTH, "arch": "estimates:Convolutions", "steps": 30}, None),
        "digits GRU, 30 steps": lambda: (
            digits(work, Recurrent),
            {"manifold": BOTH, "arch": "estimates:Recurrent", "steps": 30}, None),
        "MNIST mlp, inputs of one, 60 steps": lambda: (
            pair(work, "mlp", *HUNDREDS), {"manifold": HUNDREDS[:1], "steps": 60}, None),
        "MNIST mlp, inputs of both, 30 steps": lambda: (
            pair(work, "mlp", *HUNDREDS), {"manifold": HUNDREDS, "steps": 30}, None),
        "MNIST cnn, inputs of both, 15 steps": lambda: (
            pair(work, "cnn", *HUNDREDS), {"manifold": HUNDREDS, "steps": 15}, None),
    }  # fmt: skip


def timed(run: Callable[..., Any], seconds: list[float]) -> Callable[..., Any]:
    """Return a function whose seconds are added to a list."""

    def measured(*args: Any, **kwargs: Any) -> Any:
        began = time.perf_counter()
        try:
            return run(*args, **kwargs)
        finally:
            seconds.append(time.perf_counter() - began)

    return measured


def merged(work: Path, name: str) -> dict[str, Any]:
    """Return the estimated and the measured seconds of a merge."""
    files, options, base = merges(work)[name]()
    time.perf_counter = time.process_time  # of the estimate, too
    began = time.perf_counter()
    found = check_merge(files, options, base)
    checked = time.perf_counter() - began
    if found.time is None:
        raise SystemExit(f"{name}: {list(found.problems)}")
    known = {one.name for one in option_fields(DataOptions)}
    data = replace_options(DataOptions(), **{k: v for k, v in options.items() if k in known})
    chosen = replace_options(
        gm.MergeOptions(), **{k: v for k, v in options.items() if k not in known}
    )
    out = work / "run"
    shutil.rmtree(out, ignore_errors=True)
    pages: list[float] = []
    began, wall = time.perf_counter(), time.time()
    with patch.object(RunFolder, "finish", timed(RunFolder.finish, pages)):
        run_merge(files, chosen, data, base=base, out=out)
    seconds = time.perf_counter() - began
    return {
        "said": found.time["seconds"], "took": seconds, "ratio": found.time["seconds"] / seconds,
        "check": checked, "report": sum(pages), "wall": time.time() - wall,
        "parts": found.time["parts"],
        "assumed": found.time["assumed"],
    }  # fmt: skip


def sketched(work: Path, name: str) -> dict[str, Any]:
    """Return the estimated and the measured seconds of a sketch of a BERT, on many texts."""
    found = gm.Expert.load(berts("noun")[0])
    ready = found.with_task(found.load_task(texts(work)[0]))
    assert ready.task is not None
    time.perf_counter = time.process_time
    said = sketch_seconds(ready.network, ready.weights, ready.task.train.inputs)
    began, wall = time.perf_counter(), time.time()
    ready.with_sketch()
    took = time.perf_counter() - began
    return {"said": said, "took": took, "ratio": said / took, "wall": time.time() - wall}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--only", default="", help="beginning of the names of cases")
    parser.add_argument("--case", help="one case, in this process")
    given = parser.parse_args()
    work = given.work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    if given.case:
        measure = sketched if given.case == SKETCH else merged
        print(json.dumps(measure(work, given.case)))
        return
    rows = Rows(work / "estimates.json")
    for name in (SKETCH, *merges(work)):
        if name.startswith(given.only):
            rows.row(name, partial(apart, work, name))
    write_results("estimates.json", {"table": rows.done})


def apart(work: Path, name: str) -> dict[str, Any]:
    """Measure a case in a process of its own."""
    words = [sys.executable, __file__, "--work", str(work), "--case", name]
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


if __name__ == "__main__":
    main()
