"""Time and memory of two networks as large as ViT-B/16: a check, and a merge on images.

    python benchmarks/vit.py --work build/bench --images 10 --inputs 4

Two files of torchvision's vit_b_16 with 86 million random weights, and for each a folder of random
images, of which a fifth are the selection split. Every step is a process of its own, whose
processor time, time and peak memory count. Time and memory that the check says stand beside those
of the merge. The walk has 10 steps toward each network, and few inputs: with 12, and 40 steps, it
takes hours of one thread. Between untrained networks walks diverge early, at several rates: the
time of the merge is that of all their steps, not of the whole walk that the check counts.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from bert_base import run
from common import Rows, write_results
from nets import vit_b_16

import geomerge as gm
from geomerge.io.checkpoint import save_checkpoint
from geomerge.merging.check import check_merge

NAMES = ("a", "b")
SIDE, CLASSES = 224, 2
STEPS = 10
TEST = 5  # images of each class in the test split


def files(work: Path) -> list[Path]:
    """Return the files of both networks, written where they are missing."""
    found = [work / f"vit-{name}.safetensors" for name in NAMES]
    for seed, file in enumerate(found):
        if not file.exists():
            torch.manual_seed(seed)
            meta = {"architecture": "nets:vit_b_16"}
            save_checkpoint(file, gm.Checkpoint(vit_b_16().state_dict(), meta))
    return found


def folders(work: Path, count: int) -> list[Path]:
    """Return the folders of ``count`` training images of each network's task."""
    from PIL import Image

    found = [work / f"vit-images-{count}-{name}" for name in NAMES]
    generator = np.random.default_rng(0)
    for folder in found:
        if folder.exists():
            continue
        for split, each in (("train", count // CLASSES), ("test", TEST)):
            for label in range(CLASSES):
                place = folder / split / f"class{label}"
                place.mkdir(parents=True)
                for k in range(each):
                    pixels = generator.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
                    Image.fromarray(pixels).save(place / f"{k}.jpg")
    return found


def checked(work: Path, images: int, inputs: int) -> None:
    """Check the merge in this process, and write what it says."""
    tasks = (f"{name}={folder}" for name, folder in zip(NAMES, folders(work, images), strict=True))
    with patch("time.perf_counter", time.process_time):  # other processes count in neither number
        found = check_merge(files(work), {
            "manifold": tuple(tasks), "head": "separate", "steps": STEPS, "max_inputs": inputs,
        })  # fmt: skip
    said = found.to_json()
    (work / "vit-check.json").write_text(json.dumps({k: said[k] for k in ("memory", "time")}))


def measured(work: Path, images: int, inputs: int) -> dict[str, Any]:
    named = list(map(str, files(work)))
    tasks = folders(work, images)
    rows = Rows(work / f"vit-{images}-{inputs}.json")
    sizes = ("--images", str(images), "--inputs", str(inputs))
    words = (sys.executable, __file__, "--work", str(work), *sizes, "--check")
    rows.row("check", lambda: {
        **run(*words), "said": json.loads((work / "vit-check.json").read_text())
    })  # fmt: skip
    out = work / "vit-merged"
    shutil.rmtree(out, ignore_errors=True)
    given = [
        word
        for name, folder in zip(NAMES, tasks, strict=True)
        for word in ("--manifold", f"{name}={folder}")
    ]
    rows.row("merge", partial(
        run, sys.executable, "-m", "geomerge", "merge", *named, *given, "--head", "separate",
        "--steps", str(STEPS), "--inputs", str(inputs), "--out", str(out),
    ))  # fmt: skip
    said = rows.done["check"]["said"]
    return {
        "images": images, "inputs": inputs, "steps": STEPS, "table": rows.done,
        "said / took": said["time"]["seconds"] / rows.done["merge"]["processor_seconds"],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("build/bench"))
    parser.add_argument("--images", type=int, default=10)
    parser.add_argument("--inputs", type=int, default=4)
    parser.add_argument("--check", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    work = given.work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    known = (str(Path(__file__).parent), os.environ.get("PYTHONPATH", ""))
    os.environ["PYTHONPATH"] = os.pathsep.join(known)  # of nets:vit_b_16
    if given.check:
        checked(work, given.images, given.inputs)
    else:
        write_results("vit.json", measured(work, given.images, given.inputs))


if __name__ == "__main__":
    main()
