"""Time and memory of networks as large as BERT-base: a sketch, and a merge of two without data.

    python benchmarks/bert_base.py --work build/bench --inputs 500

Two folders of 110 million random weights near a third, their base. Inputs are 32 random tokens
each. Every step is a process of its own, whose processor time, time and peak memory count; the time
of Python's start and of reading the folders is in it. A sketch is written at its usual size.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import Rows, write_results

import geomerge as gm

TOKENS = 32
NOISE = 0.002  # distance of each weight from the base's, of 0.02 on average
NAMES = ("a", "b")


def folder(work: Path, name: str) -> Path:
    return work / f"bert-base-{name}"


def write_folders(work: Path) -> int:
    """Write the base and both networks, unless they lie there; return the number of weights."""
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig(num_labels=3)).eval()
    own = [p.detach().clone() for p in model.parameters()]
    for name in ("base", *NAMES):
        if folder(work, name).exists():
            continue
        if name != "base":
            for p, start in zip(model.parameters(), own, strict=True):
                p.data.copy_(start + NOISE * torch.randn_like(start))
        model.save_pretrained(folder(work, name))
    return sum(p.numel() for p in model.parameters())


def sketch(place: Path, inputs: int) -> None:
    """Measure a folder's sketch on random tokens and write it there."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1000, 30_000, (inputs, TOKENS), generator=generator)
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    made = gm.Expert.load(place, inputs=given, sketch=False).with_sketch(inputs=inputs)
    assert made.sketch is not None
    gm.save_sketch(place / "geomerge-sketch.safetensors", made.sketch, 0.25)


def run(*command: str) -> dict[str, float]:
    """Run a process and return its seconds and its peak memory in GB."""
    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    watched = [sys.executable, __file__, "--watch", *command]
    done = subprocess.run(watched, check=True, capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "seconds": time.perf_counter() - began,
        "processor_seconds": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        "peak_gb": json.loads(done.stdout.splitlines()[-1]),
    }


def watch(command: list[str]) -> None:
    """Run a command as the only child and print its peak memory in GB."""
    subprocess.run(command, check=True, stdout=sys.stderr)
    print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20)


def measured(work: Path, inputs: int) -> dict[str, Any]:
    weights = write_folders(work)
    rows = Rows(work / f"bert-base-{inputs}.json")
    for name in NAMES:
        words = ("--sketch", str(folder(work, name)), "--inputs", str(inputs))
        rows.row(f"sketch of {name}", partial(run, sys.executable, __file__, *words))
    out = folder(work, "merged")
    shutil.rmtree(out, ignore_errors=True)
    named = [str(folder(work, name)) for name in NAMES]
    rows.row("merge", partial(
        run, sys.executable, "-m", "geomerge", "merge", *named, "--base",
        str(folder(work, "base")), "--head", "separate", "--out", str(out),
    ))  # fmt: skip
    size = sum(file.stat().st_size for file in folder(work, "a").glob("*sketch*"))
    return {
        "weights": weights, "inputs": inputs, "network_gb": 4 * weights / 2**30,
        "sketch_share": size / (4 * weights), "table": rows.done,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("build/bench"))
    parser.add_argument("--inputs", type=int, default=500)
    parser.add_argument("--sketch", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--watch", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.watch is not None:
        watch(given.watch)
    elif given.sketch is not None:
        sketch(given.sketch, given.inputs)
    else:
        given.work.mkdir(parents=True, exist_ok=True)
        write_results("bert_base.json", measured(given.work, given.inputs))


if __name__ == "__main__":
    main()
