"""Speed on a GPU within ten minutes: steps, measuring, decompositions, merges of large networks.

    python benchmarks/gpu.py --work build/bench
    python benchmarks/gpu.py --work build/try --device cpu --tiny

- a step of a walk in a Kronecker sketch / a training step of the same batch, and the share of the
  memory bandwidth that the step reaches, if each weight, momentum and gradient is read and written
  once;
- measuring the Kronecker metric / a training pass over the same inputs;
- decomposition of wide factors as the metric stores them / `eigh` in double precision;
- a merge of two ResNet-50 and of two BERT-base with random weights, from start to end, with its
  peak memory on the device.

Random weights and inputs: no time depends on what the networks know. Finished rows are kept in
--work. The bandwidth is that of a copy of 2 GB in the same run. Needs torchvision and transformers.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import Rows, write_results
from torch import Tensor, nn

import geomerge as gm
from geomerge.data import as_they_are
from geomerge.metrics import measure_metric
from geomerge.metrics.kronecker.factor import factorise
from geomerge.walks.objectives import KLToTeacher
from geomerge.walks.walk import FunctionWalkOptions, walk_toward_function

CLASSES, DAMPING = 10, 1e-3
STEPS, WALKED = 20, 10  # timed steps; steps of a merge


class Bench:
    """Sizes and clock of a run.

    Args:
        device: Device that computes.
        tiny: Whether everything is small, to try the script.
    """

    def __init__(self, device: str, tiny: bool) -> None:
        self.device, self.tiny = device, tiny
        self.images, self.pixels = (8, 64) if tiny else (200, 224)
        self.batch, self.measured = (4, 8) if tiny else (64, 256)
        self.widths = (300, 1100) if tiny else (1153, 2305, 4609, 8192)
        self.networks = ("mobilenet_v3_small",) if tiny else ("resnet18", "resnet50", "vit_b_16")

    def seconds(self, run: Callable[[], object], times: int = 1) -> float:
        """Return the mean seconds of a call after a first one, when the device has finished."""
        run()
        self._wait()
        began = time.perf_counter()
        for _ in range(times):
            run()
        self._wait()
        return (time.perf_counter() - began) / times

    def peak(self) -> float:
        """Return the most GB held on the device since the last call; 0 on a CPU."""
        if self.device != "cuda":
            return 0.0
        most = torch.cuda.max_memory_allocated() / 1e9
        torch.cuda.reset_peak_memory_stats()
        return most

    def _wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()

    def pictures(self, count: int) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        size = (count, 3, self.pixels, self.pixels)
        return torch.randint(0, 256, size, generator=generator, dtype=torch.uint8)


def torchvision(name: str, bench: Bench, seed: int = 0) -> nn.Module:
    from torchvision import models

    torch.manual_seed(seed)
    own = {"image_size": bench.pixels} if name.startswith("vit") else {}
    module: nn.Module = getattr(models, name)(num_classes=CLASSES, **own)
    return module


def bandwidth(bench: Bench) -> dict[str, float]:
    """Bytes per second that a copy reads and writes."""
    source = torch.zeros((1 if bench.tiny else 500) * 10**6, device=bench.device)
    target = torch.empty_like(source)
    return {"bytes per second": 2 * source.nbytes / bench.seconds(lambda: target.copy_(source), 5)}


def steps(name: str, bench: Bench, copied: float) -> dict[str, Any]:
    """A step of a walk, a training step, and measuring the metric that the walk is in."""
    network = gm.Network(torchvision(name, bench), bench.device)
    inputs = as_they_are(bench.pictures(bench.measured).float() / 255, network.device)
    measuring = bench.seconds(lambda: measure_metric(network, network.initial, inputs))
    metric = measure_metric(network, network.initial, inputs).truncate(DAMPING)
    targets = torch.zeros(len(inputs), CLASSES, device=bench.device).log_softmax(dim=1)
    direction = KLToTeacher(network, targets, inputs, bench.batch, 0)
    options = FunctionWalkOptions(DAMPING, 10**6, 1e-4)
    walk = walk_toward_function(network.initial, lambda _: metric, [direction], options)
    step = bench.seconds(lambda: next(walk), STEPS)
    module = torchvision(name, bench).to(bench.device)
    optimizer = torch.optim.SGD(module.parameters(), 1e-4, momentum=0.9)
    x, labels = inputs.batch(slice(0, bench.batch)), torch.arange(bench.batch) % CLASSES
    labels = labels.to(bench.device)

    def train() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(x), labels).backward()
        optimizer.step()

    training = bench.seconds(train, STEPS)
    weights = network.n
    beside = max(step - training, 1e-9)
    return {
        "weights": weights, "batch": bench.batch, "step": step, "training step": training,
        "step ratio": step / training,
        "share of the bandwidth": 6 * 4 * weights / beside / copied,
        "inputs": len(inputs), "measuring": measuring,
        "measuring ratio": measuring / (training * len(inputs) / bench.batch),
        "peak GB": bench.peak(),
    }  # fmt: skip


def factor(width: int, bench: Bench) -> dict[str, float]:
    """A factor with eigenvalues 1/i, as the metric stores it, and its whole decomposition."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(width, width, generator=generator).to(bench.device)
    rows /= torch.arange(1, width + 1, device=bench.device).sqrt()
    matrix = (rows.T @ rows).double()
    ours = bench.seconds(lambda: factorise(matrix))
    whole = bench.seconds(lambda: torch.linalg.eigh(matrix))
    return {"ours": ours, "eigh": whole, "ratio": ours / whole}


def pictures_merged(bench: Bench) -> dict[str, Any]:
    """Two ResNet-50 on random pictures."""
    name = "mobilenet_v3_small" if bench.tiny else "resnet50"
    experts = []
    for k in range(2):
        labels = torch.arange(3 * bench.images) % CLASSES
        task = gm.Task.from_tensors(bench.pictures(len(labels)), labels, name=f"pictures {k}")
        module = torchvision(name, bench, seed=k)
        experts.append(gm.Expert.from_module(module, task, device=bench.device))
    return merged(experts, bench, head="shared")


def texts_merged(bench: Bench) -> dict[str, Any]:
    """Two BERT-base on random tokens."""
    from transformers import BertConfig, BertForSequenceClassification

    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
            "intermediate_size": 64, "vocab_size": 500}  # fmt: skip
    config = BertConfig(num_labels=CLASSES, **(size if bench.tiny else {}))
    experts = []
    for k in range(2):
        generator = torch.Generator().manual_seed(k)
        count = 3 * bench.images
        ids = torch.randint(10, config.vocab_size, (count, 32), generator=generator)
        x = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        task = gm.Task.from_tensors(x, torch.arange(count) % CLASSES, name=f"texts {k}")
        torch.manual_seed(k)
        module = BertForSequenceClassification(config)
        experts.append(gm.Expert.from_module(module, task, device=bench.device))
    return merged(experts, bench, head="shared")


def merged(experts: list[gm.Expert], bench: Bench, head: str) -> dict[str, Any]:
    bench.peak()
    began = time.perf_counter()
    found = gm.merge(
        experts, head=head, steps=WALKED, points=8, damping=DAMPING, align="none", bn=None
    )
    found.checkpoint()
    return {
        "weights": experts[0].network.n, "inputs": sum(len(e.inputs or ()) for e in experts),
        "steps": WALKED, "seconds": time.perf_counter() - began, "peak GB": bench.peak(),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small sizes, to try the script")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    bench = Bench(given.device, given.tiny)
    rows = Rows(given.work / "gpu.json")
    rows.row("bandwidth", partial(bandwidth, bench))
    for width in bench.widths:
        rows.row(f"factor {width}", partial(factor, width, bench))
    for name in bench.networks:
        copied = rows.done["bandwidth"]["bytes per second"]
        rows.row(f"steps {name}", partial(steps, name, bench, copied))
    rows.row("merge of pictures", partial(pictures_merged, bench))
    rows.row("merge of texts", partial(texts_merged, bench))
    if not given.tiny:
        name = torch.cuda.get_device_name() if given.device == "cuda" else given.device
        write_results("gpu.json", {"device": name, "table": rows.done})


if __name__ == "__main__":
    main()
