"""Memory of each process, and time, of sharded merges with one, two and three processes.

    python benchmarks/sharded.py --work build/bench

Two folders of random weights of a BERT with 14 million weights, inputs of 32 random tokens. Counted
are the bytes that a process holds (weights, momentum, factors of the metric), the growth of its
peak resident memory from before the first weight was read, and the processor seconds of one
measurement of the metric of both and of a step. All processes run on one machine, and waiting for
each other is not counted; the largest number of all processes is reported.
"""

from __future__ import annotations

import argparse
import os
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from common import write_results
from torch.multiprocessing.spawn import start_processes

from geomerge.data import as_they_are
from geomerge.processes import Team
from geomerge.sharded.layout import Layout
from geomerge.sharded.network import ShardedNetwork
from geomerge.sharded.sources import Sources
from geomerge.sharded.walk import Measuring, ShardedWalk, Teacher, answers
from geomerge.walks.walk import FunctionWalkOptions

TOKENS, INPUTS, STEPS, BATCH, AT_ONCE = 32, 96, 2, 48, 8
NAMES = ("a", "b")
SIZES = (1, 2, 3)


def write_folders(work: Path) -> list[Path]:
    """Write two networks near each other, unless they lie there."""
    from transformers import BertConfig, BertForSequenceClassification

    folders = [work / f"bert-14m-{name}" for name in NAMES]
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 8000, "hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 6,
        "intermediate_size": 1536, "max_position_embeddings": 64, "num_labels": 3,
    }  # fmt: skip
    model = BertForSequenceClassification(BertConfig(**sizes)).eval()
    for folder in folders:
        if not folder.exists():
            model.save_pretrained(folder)
        for p in model.parameters():
            p.data.add_(0.002 * torch.randn_like(p))
    return folders


def resident() -> int:
    """Return the bytes of this process that are in memory now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def timed(work: Callable[[], Any]) -> float:
    """Return the processor seconds of some work."""
    began = time.process_time()
    work()
    return time.process_time() - began


def measured(rank: int, size: int, place: str, folders: list[Path]) -> None:
    """Walk a few steps in one of several processes, and save what it held and took."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{place}/store", rank=rank, world_size=size)
    mates = Team(dist.new_group())
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1000, 8000, (INPUTS, TOKENS), generator=generator)
    inputs = as_they_are({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    Sources(folders).module()  # what is imported on the way is not counted
    before = resident()
    sources = Sources(folders)
    network = ShardedNetwork(sources.module(), mates)
    network.fill(lambda *at: sources.mean_rows(*at, dtype=torch.float32))
    network.probe([("random tokens", inputs.batch(slice(0, 1)))] * 2)
    layout, teachers = Layout(network), []
    for name in sources.folders:
        network.fill(lambda *at, name=name: sources.rows(name, *at))
        teachers.append(Teacher(inputs, answers(network, inputs, AT_ONCE)))
    network.fill(lambda *at: sources.mean_rows(*at, dtype=torch.float32))
    walk = ShardedWalk(
        network, layout, teachers, FunctionWalkOptions(1e-3, STEPS, 0.5, batch=BATCH),
        Measuring(at_once=AT_ONCE),
    )  # fmt: skip
    measuring = timed(walk.measure)
    stepping = timed(lambda: [walk.step() for _ in range(STEPS)]) / STEPS
    assert walk.metric is not None
    numbers = [
        network.nbytes, walk.momentum.nbytes, walk.metric.nbytes,
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before, measuring, stepping,
    ]  # fmt: skip
    torch.save(torch.tensor(numbers, dtype=torch.float64), f"{place}/{rank}.pt")
    mates.wait()
    dist.destroy_process_group()


def row(size: int, folders: list[Path]) -> dict[str, float]:
    """Return the largest numbers of several processes."""
    with tempfile.TemporaryDirectory() as place:
        start_processes(measured, (size, place, folders), size, start_method="spawn")
        found = [torch.load(f"{place}/{rank}.pt", weights_only=True) for rank in range(size)]
    largest = torch.stack(found).max(dim=0).values.tolist()
    names = ("weights", "momentum", "factors", "peak", "measuring", "step")
    return dict(zip(names, largest, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("build/bench"))
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    folders = write_folders(given.work)
    table = {str(size): row(size, folders) for size in SIZES}
    weights = int(table["1"]["weights"]) // 4
    write_results("sharded.json", {"weights": weights, "inputs": INPUTS, "table": table})


if __name__ == "__main__":
    main()
