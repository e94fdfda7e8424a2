"""Peak memory of a Kronecker walk on VGG11 with the sketch given, in copies of its weights.

    python benchmarks/memory.py

Beside the walk, in the same run: plain fine-tuning steps with the same batch, whose peak tells what
the activations take. Linux only. Needs GEOMERGE_DATA with the trained VGG11.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

import torch
from common import write_results

from geomerge import Network, load_checkpoint, load_task
from geomerge.data import Inputs
from geomerge.metrics import load_sketch, make_sketch, save_sketch
from geomerge.networks.architectures import rebuild_network
from geomerge.walks.objectives import KLToTeacher, divergence, log_probabilities
from geomerge.walks.walk import FunctionWalkOptions, walk_toward_function

BATCH, STEPS, INPUTS = 256, 5, 512


def setting() -> tuple[Network, torch.Tensor, Inputs]:
    root = Path(os.environ["GEOMERGE_DATA"])
    checkpoint = load_checkpoint(root / "vgg11_cifar10.pt")
    network = Network(rebuild_network(checkpoint.weights, None, checkpoint.source))
    inputs = Inputs(torch.rand(INPUTS, 3, 32, 32), load_task("digits").normalisation)
    return network, network.initial, inputs


def resident(kind: str) -> int:
    """Return VmRSS (now) or VmHWM (the peak since it was last reset) in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(kind)).split()[1])


def reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def fine_tune() -> int:
    """Take plain steps and return the peak over what was there before the network."""
    before = resident("VmRSS")
    network, w, inputs = setting()
    targets = log_probabilities(network, w, inputs, BATCH)
    reset_peak()
    for _ in range(STEPS):
        _, gradient = network.gradient(
            w, inputs.batch(slice(0, BATCH)), divergence(targets[:BATCH])
        )
        w -= 0.01 * gradient
    return resident("VmHWM") - before


def walk(file: Path) -> int:
    """Walk with a stored sketch and return the peak over what was there before the network."""
    before = resident("VmRSS")
    network, w, inputs = setting()
    targets = log_probabilities(network, w, inputs, BATCH)
    metric = load_sketch(file, network, w).metric
    reset_peak()
    direction = KLToTeacher(network, targets, inputs, BATCH, 0)
    walk = FunctionWalkOptions(3e-5, steps=STEPS)
    for _ in walk_toward_function(w, lambda w: metric, [direction], walk):
        pass
    return resident("VmHWM") - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", choices=["walk", "fine-tune"])
    parser.add_argument("--work", type=Path, default=Path("build/bench"))
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    file = given.work / "vgg11-sketch.safetensors"
    if given.part:
        print(walk(file) if given.part == "walk" else fine_tune())
        return
    network, w, inputs = setting()
    if not file.exists():
        save_sketch(file, make_sketch(network, w, inputs, "noise", count=256))
    weights, sketch = 4 * network.n, file.stat().st_size
    found = {}
    for part in ("fine-tune", "walk"):
        command = [sys.executable, __file__, "--part", part, "--work", str(given.work)]
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        found[part] = int(out[-1])
        print(f"{part}: {found[part] / weights:.1f} copies of the weights")
    # Beside its activations plain training holds the weights (as a vector and as they came), their
    # gradient and the one that autograd makes.
    activations = max(found["fine-tune"] - 4 * weights, 0)
    copies = (found["walk"] - sketch - activations) / weights
    print(
        f"walk: {copies:.1f} copies beside the sketch ({sketch / weights:.1f}) and activations "
        f"({activations / weights:.1f})"
    )
    print(f"walk / fine-tuning {found['walk'] / found['fine-tune']:.2f}")
    write_results("memory.json", {
        "weights": weights, "sketch": sketch, "activations": activations,
        "walk": found["walk"], "fine_tune": found["fine-tune"], "copies": copies,
    })  # fmt: skip


if __name__ == "__main__":
    main()
