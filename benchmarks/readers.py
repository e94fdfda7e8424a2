"""Time and peak memory of refusing each hostile file, beside reading a valid one of the same size.

    python benchmarks/readers.py

Each file is read in a process of its own, forked once the libraries are loaded. Linux only.
"""

from __future__ import annotations

import io
import json
import os
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from common import write_results
from hostile_data import (
    HOSTILE_IMAGES,
    HOSTILE_NPZ,
    HOSTILE_PATHS,
    make_path,
    npz_bytes,
)
from hostile_networks import HOSTILE_SAFETENSORS, HOSTILE_TORCH
from memory import reset_peak, resident
from PIL import Image

from geomerge import Checkpoint, WeightPath, load_checkpoint, load_task, save_checkpoint
from geomerge.errors import GeomergeError

REPEATS = 3  # the least of so many, each in a process of its own
MOST_SECONDS, MOST_BYTES = 1.0, 8 * 2**20


def measured(read: Callable[[], object], first: Callable[[], object]) -> dict[str, Any]:
    """Read in a fork; return whether it was refused, its seconds and the bytes it added.

    A small valid file is read ``first``: its reader's own code comes into memory with that.
    """
    gives, takes = os.pipe()
    if os.fork() == 0:
        first()
        reset_peak()
        before, began = resident("VmRSS"), time.perf_counter()
        refused = False
        try:
            read()
        except GeomergeError:
            refused = True
        found = {"refused": refused, "seconds": time.perf_counter() - began}
        found["bytes"] = max(resident("VmHWM") - before, 0)
        os.write(takes, json.dumps(found).encode())
        os._exit(0)
    os.close(takes)
    with os.fdopen(gives, "rb") as stream:
        found = json.loads(stream.read())
    os.wait()
    return found


def least(read: Callable[[], object], first: Callable[[], object]) -> dict[str, Any]:
    runs = [measured(read, first) for _ in range(REPEATS)]
    return {**runs[0], **{k: min(run[k] for run in runs) for k in ("seconds", "bytes")}}


def image_folder(folder: Path, content: bytes) -> Path:
    (folder / "cat").mkdir(parents=True, exist_ok=True)
    for k in range(12):
        (folder / "cat" / f"{k:02}.png").write_bytes(content)
    return folder


def valid_image(size: int) -> bytes:
    side = max(4, int(max(size - 70, 0) ** 0.5))
    made = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (side, side), dtype=np.uint8)
    Image.fromarray(noise).save(made, "PNG")
    return made.getvalue()


def small_files(folder: Path) -> dict[str, Callable[[], object]]:
    """Write a small valid file of each kind and return what reads it."""
    for suffix in (".pt", ".safetensors"):
        save_checkpoint(folder / f"small{suffix}", Checkpoint({"w": torch.ones(4)}))
    arrays = npz_bytes(x=np.ones((30, 2), np.float32), y=np.arange(30) % 3)
    (folder / "small.npz").write_bytes(arrays)
    images = image_folder(folder / "small", valid_image(100))
    make_path(folder / "whole")
    return {
        ".pt": lambda: load_checkpoint(folder / "small.pt"),
        ".safetensors": lambda: load_checkpoint(folder / "small.safetensors"),
        ".npz": lambda: load_task(str(folder / "small.npz")),
        "image": lambda: load_task(str(images)),
        "path": lambda: WeightPath(folder / "whole").at(0.5),
    }


def cases(folder: Path) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    small = small_files(folder)

    def row(
        name: str, size: int, hostile: Callable[[], object], valid: Callable[[], object]
    ) -> None:
        first = small[name.partition(":")[0]]
        found[name] = {"size": size, "hostile": least(hostile, first), "valid": least(valid, first)}
        one, two = found[name]["hostile"], found[name]["valid"]
        print(
            f"{name}: {size} bytes, refused {one['refused']} in {1e3 * one['seconds']:.1f} ms and "
            f"{one['bytes'] / 2**20:.1f} MiB; a valid one {1e3 * two['seconds']:.1f} ms and "
            f"{two['bytes'] / 2**20:.1f} MiB",
            flush=True,
        )

    for suffix, group in ((".pt", HOSTILE_TORCH), (".safetensors", HOSTILE_SAFETENSORS)):
        for name, make in group.items():
            file, good = folder / f"a{suffix}", folder / f"good{suffix}"
            file.write_bytes(make())
            size = file.stat().st_size
            save_checkpoint(good, Checkpoint({"w": torch.ones(max(size // 4, 1))}))
            row(
                f"{suffix}: {name}", size,
                lambda file=file: load_checkpoint(file), lambda good=good: load_checkpoint(good),
            )  # fmt: skip
    for name, make in HOSTILE_NPZ.items():
        file, good = folder / "a.npz", folder / "good.npz"
        file.write_bytes(make())
        size = file.stat().st_size
        rows = max(size // 16, 30)
        good.write_bytes(npz_bytes(x=np.ones((rows, 2), np.float32), y=np.arange(rows) % 3))
        row(
            f".npz: {name}", size,
            lambda file=file: load_task(str(file)), lambda good=good: load_task(str(good)),
        )  # fmt: skip
    for name, make in HOSTILE_IMAGES.items():
        content = make()
        bad = image_folder(folder / f"bad-{len(found)}", content)
        fine = image_folder(folder / f"fine-{len(found)}", valid_image(len(content)))
        row(
            f"image: {name}", len(content),
            lambda bad=bad: load_task(str(bad)), lambda fine=fine: load_task(str(fine)),
        )  # fmt: skip
    for name, make_folder in HOSTILE_PATHS.items():
        place = folder / f"path-{len(found)}" / "path"
        make_folder(place)
        size = sum(f.lstat().st_size for f in place.iterdir())
        row(
            f"path: {name}", size,
            lambda place=place: WeightPath(place).at(0.5),
            small["path"],
        )  # fmt: skip
    return found


def main() -> None:
    torch.set_num_threads(1)  # a fork has none of the threads that its parent waits for
    warnings.simplefilter("ignore")  # Pillow's, of large images
    with TemporaryDirectory() as name:
        found = cases(Path(name))
    hostile = {name: case["hostile"] for name, case in found.items()}
    slow = [name for name, one in hostile.items() if one["seconds"] > MOST_SECONDS]
    large = [
        name
        for name, case in found.items()
        if case["hostile"]["bytes"] > MOST_BYTES + 2 * case["size"]
    ]
    read = [name for name, one in hostile.items() if not one["refused"]]
    print(f"{len(found)} cases; read {read}, slow {slow}, large {large}")
    write_results("readers.json", {
        "cases": found,
        "refused": len(found) - len(read),
        "slowest_seconds": max(one["seconds"] for one in hostile.values()),
        "largest_bytes": max(one["bytes"] for one in hostile.values()),
    })  # fmt: skip


if __name__ == "__main__":
    main()
