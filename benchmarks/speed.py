"""Speed of metrics, checks and several processes, as ratios in one run.

    python benchmarks/speed.py --work build/bench                 # all rows
    python benchmarks/speed.py --work build/bench --rows factor   # those whose names begin so

- decomposition of a wide factor / `eigh` in double precision, and what the truncation costs;
- measuring the Kronecker metric of a convolutional network / one training pass over its images;
- measuring the same / curvlinops' KFAC;
- `check` of a merge of two networks of torchvision: seconds, and peak memory of its process;
- a gradient, and a measurement of the Kronecker metric, in bfloat16 / the same in float32;
- two processes of one thread / one process of one thread: measuring, steps of a walk;
- largest difference of merged weights, in float32, from those of one process of one thread.

Networks have random weights: none of these times depends on them. Every row has one thread a
process, and times are processor seconds (`time.perf_counter` is replaced), so that other work on
the machine does not change them: with one thread on a free machine they are the seconds on the
wall. Of two processes the one with more counts. Needs
`pip install curvlinops-for-pytorch torchvision`. Finished rows are kept in --work.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from common import Rows, write_results
from nets import resnet20
from steps import METRIC_INPUTS, cnn, in_turns, inputs, kfac, mlp, step
from torch import Tensor, nn

import geomerge as gm
from geomerge.data import as_they_are
from geomerge.metrics import measure_metric
from geomerge.metrics.kronecker.factor import factorise
from geomerge.processes import together
from geomerge.walks.objectives import KLToTeacher
from geomerge.walks.walk import FunctionWalkOptions, walk_toward_function

OTHER = 256  # width of the factor of outputs beside a wide factor
CHECKED = {  # networks of torchvision
    "resnet50": 224, "mobilenet_v3_small": 224, "efficientnet_b0": 224, "convnext_tiny": 224,
    "vit_b_16": 224, "swin_t": 224,
}  # fmt: skip
IMAGES = 60  # of each task of a check


def factor(width: int) -> dict[str, Any]:
    """A factor with eigenvalues 1/i, whole and as the metric keeps it."""
    generator = torch.Generator().manual_seed(0)
    q = torch.linalg.qr(torch.randn(width, width, generator=generator)).Q.double()
    values = 1 / torch.arange(1, width + 1, dtype=torch.float64)
    matrix = (q * values) @ q.T
    matrix = (matrix + matrix.T) / 2
    ours, whole = in_turns(lambda: factorise(matrix), lambda: torch.linalg.eigh(matrix), times=2)
    kept = factorise(matrix)
    found: dict[str, Any] = {
        "width": width, "kept": len(kept.values), "ours": ours, "eigh": whole,
        "ratio": ours / whole,
    }  # fmt: skip
    u, v = kept.vectors, torch.randn(width, 4, generator=generator).double()
    inside, exact = u.T @ v, q.T @ v
    outside = v - u @ inside
    for mu in (1e-3, 1e-4):
        sums = torch.zeros(4, dtype=torch.float64)
        for other in (1 / torch.arange(1, OTHER + 1, 4, dtype=torch.float64)).tolist():
            x = u @ (inside / (other * kept.values[:, None] + mu)) + outside / (
                other * kept.tail + mu
            )
            y = exact / (other * values[:, None] + mu)
            change = other * ((q.T @ x).square() * values[:, None]).sum()
            best = other * (y.square() * values[:, None]).sum()
            sums += torch.stack([change, (v * x).sum(), best, (exact * y).sum()])
        found[f"functional change at {mu:g}"] = float(
            (sums[0] / sums[1] ** 2) / (sums[2] / sums[3] ** 2)
        )
    return found


def torchvision(name: str) -> nn.Module:
    from torchvision import models

    torch.manual_seed(0)
    module: nn.Module = getattr(models, name)(num_classes=10)
    for p in module.parameters():
        if p.dim() > 1 and not p.any():  # the head of a vision transformer, whose output is 0
            nn.init.normal_(p, std=0.02)
    return module


def measuring(make: Callable[[], nn.Module], x: Tensor, batch: int) -> dict[str, Any]:
    """Measuring the Kronecker metric on images, and one pass of training over them."""
    network, module = gm.Network(make()), make()
    optimizer = torch.optim.SGD(module.parameters(), 1e-3, momentum=0.9)
    labels = torch.arange(len(x)) % 10

    def train() -> None:
        for k in range(0, len(x), batch):
            optimizer.zero_grad()
            nn.functional.cross_entropy(module(x[k : k + batch]), labels[k : k + batch]).backward()
            optimizer.step()

    ours, training = in_turns(lambda: measure_metric(network, network.initial, x), train, times=1)
    return {
        "weights": network.n, "images": len(x), "measuring": ours, "training pass": training,
        "ratio": ours / training,
    }  # fmt: skip


class Transformer(nn.Module):
    """Four layers of attention between 32 words."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(1000, 256)
        layer = nn.TransformerEncoderLayer(256, 4, 1024, dropout=0.0, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
        self.head = nn.Linear(256, 10)

    def forward(self, ids: Tensor) -> Tensor:
        out: Tensor = self.head(self.layers(self.words(ids)).mean(dim=1))
        return out


def rounded(make: Callable[[], nn.Module], x: Tensor) -> dict[str, Any]:
    """Passes with derivatives in bfloat16 and in float32."""
    torch.manual_seed(0)
    network = gm.Network(make())
    w, labels, low = network.initial, torch.arange(len(x)) % 5, network.with_precision("bfloat16")

    def gradient(known: gm.Network) -> Tensor:
        return known.gradient(w, x, lambda logits: nn.functional.cross_entropy(logits, labels))[1]

    ours, whole = in_turns(partial(gradient, low), partial(gradient, network), times=5)
    exact = gradient(network)
    measured, measured_whole = in_turns(
        lambda: measure_metric(low, w, x), lambda: measure_metric(network, w, x), times=1
    )
    return {
        "weights": network.n, "inputs": len(x), "gradient": ours, "gradient in float32": whole,
        "ratio": ours / whole, "measuring": measured, "measuring in float32": measured_whole,
        "measuring ratio": measured / measured_whole,
        "distance": float((gradient(low) - exact).norm() / exact.norm()),
    }  # fmt: skip


def checked(name: str) -> dict[str, Any]:
    """The check of two networks in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, "--work", ".", "--check", name],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def check(name: str) -> None:
    size = CHECKED[name]
    generator = torch.Generator().manual_seed(0)
    experts = []
    for k in range(2):
        torch.manual_seed(k)
        x = torch.randint(
            0, 256, (3 * IMAGES, 3, size, size), generator=generator, dtype=torch.uint8
        )
        task = gm.Task.from_tensors(x, torch.arange(len(x)) % 10, name=f"images {k}")
        experts.append(gm.Expert.from_module(torchvision(name), task))
    loaded, began = peak(), time.perf_counter()
    found = gm.check(experts)
    seconds = time.perf_counter() - began
    print(json.dumps({
        "weights": experts[0].network.n, "seconds": seconds, "loaded": loaded, "peak": peak(),
        "said": found.memory, "time": found.time, "problems": list(found.problems),
    }))  # fmt: skip


def peak() -> int:
    """Return the most bytes that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def shared(count: int) -> dict[str, Any]:
    """The same work by one process, and by two."""
    found: dict[str, Any] = {}
    for size in (1, 2):
        with tempfile.TemporaryDirectory() as folder:
            words = [sys.executable, __file__, "--work", folder, "--size", str(size)]
            started = [
                subprocess.Popen([*words, "--rank", str(rank), "--count", str(count)],
                                 stdout=subprocess.PIPE, text=True)
                for rank in range(size)
            ]  # fmt: skip
            said = [process.communicate()[0] for process in started]
        times = [json.loads(one.splitlines()[-1]) for one in said]
        found[f"{size} processes"] = {part: max(t[part] for t in times) for part in times[0]}
    one, two = found["1 processes"], found["2 processes"]
    found["speed-up"] = {part: one[part] / two[part] for part in one}
    return found


def same(steps: int) -> dict[str, Any]:
    """Merged weights of several processes, and of two threads, beside those of one."""
    found: dict[str, Tensor] = {}
    for name, size, threads in (
        ("one", 1, 1), ("2 threads", 1, 2), ("2 processes", 2, 1), ("3 processes", 3, 1)
    ):  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            words = [sys.executable, __file__, "--work", folder, "--size", str(size)]
            words += ["--threads", str(threads), "--steps", str(steps)]
            started = [
                subprocess.Popen([*words, "--rank", str(rank)], stdout=subprocess.DEVNULL)
                for rank in range(size)
            ]
            if any([process.wait() for process in started]):
                raise RuntimeError(f"a merge of {name} failed")
            found[name] = torch.load(f"{folder}/weights.pt", weights_only=True)
    first = found.pop("one")
    return {
        "weights": len(first), "steps": steps, "largest weight": float(first.abs().max()),
        **{name: float((w - first).abs().max()) for name, w in found.items()},
    }  # fmt: skip


def merge_digits(rank: int, size: int, threads: int, steps: int, folder: Path) -> None:
    """Merge two small networks, and keep the weights."""
    if size > 1:
        dist.init_process_group(
            "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size
        )
    experts = []
    for seed, name in enumerate(("digits@0-4", "digits@5-9")):
        torch.manual_seed(seed)
        module = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.Tanh(), nn.Linear(12, 10))
        task = gm.load_task(name)
        x, optimizer = task.train.inputs.batch(slice(None)), torch.optim.Adam(module.parameters())
        for _ in range(400):
            optimizer.zero_grad()
            nn.functional.cross_entropy(module(x), task.train.labels).backward()
            optimizer.step()
        experts.append(gm.Expert.from_module(module, task))
    torch.set_num_threads(threads)  # after the training, which gives the same networks
    merged = gm.merge(experts, steps=steps, preset="joint", folder=folder / "path")
    if rank == 0:
        torch.save(merged.w, folder / "weights.pt")


def work(rank: int, size: int, count: int, folder: Path) -> None:
    """Measure a metric and walk, alone or as one of several processes."""
    if size > 1:
        dist.init_process_group(
            "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size
        )
    network, x = gm.Network(mlp(640)), inputs(count)
    with together():
        measure_metric(network, network.initial, x[:200])  # warms up, and connects
        began = time.perf_counter()
        metric = measure_metric(network, network.initial, x)
        measured = time.perf_counter() - began
        targets = torch.randn(len(x), 10).log_softmax(dim=1)
        direction = KLToTeacher(network, targets, as_they_are(x), 1024, 0)
        walk = walk_toward_function(
            network.initial, lambda _: metric.truncate(1e-3), [direction],
            FunctionWalkOptions(1e-3, 22, 1e-3),
        )  # fmt: skip
        next(walk)
        next(walk)
        began = time.perf_counter()
        for _ in walk:
            pass
        walked = time.perf_counter() - began
    print(json.dumps({"measuring": measured, "walking": walked}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--rows", default="", help="start of the names of the rows to measure")
    parser.add_argument("--check", help=argparse.SUPPRESS)
    for name in ("--rank", "--size", "--count", "--threads", "--steps"):
        parser.add_argument(name, type=int, default=0, help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    time.perf_counter = time.process_time
    if given.check:
        return check(given.check)
    if given.steps:
        return merge_digits(given.rank, given.size, given.threads, given.steps, given.work)
    if given.size:
        return work(given.rank, given.size, given.count, given.work)
    given.work.mkdir(parents=True, exist_ok=True)
    small, large = torch.randn(1000, 3, 32, 32), torch.randn(100, 3, 224, 224)
    makers: dict[str, Callable[[], dict[str, Any]]] = {
        "factor 785": partial(factor, 785),
        "factor 2305": partial(factor, 2305),
        "measuring resnet18": partial(measuring, partial(torchvision, "resnet18"), small, 100),
        "measuring mobilenet_v3_small": partial(
            measuring, partial(torchvision, "mobilenet_v3_small"), large, 20
        ),
        "kfac mlp-400": partial(kfac, partial(mlp, 400), METRIC_INPUTS),
        "kfac cnn": partial(kfac, cnn, METRIC_INPUTS),
        "step mlp-100": partial(step, partial(mlp, 100), 256),
        "step cnn": partial(step, cnn, 256),
        "bfloat16 resnet20": partial(rounded, resnet20, small[:100]),
        "bfloat16 transformer": partial(rounded, Transformer, torch.randint(0, 1000, (64, 32))),
        "processes": partial(shared, 20_000),
        **{f"same weights {steps}": partial(same, steps) for steps in (8, 100)},
        **{f"check {name}": partial(checked, name) for name in CHECKED},
    }
    rows = Rows(given.work / "speed.json")
    for name, make in makers.items():
        if name.startswith(given.rows):
            rows.row(name, make)
    write_results("speed.json", rows.done)


if __name__ == "__main__":
    main()
