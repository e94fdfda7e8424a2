"""Processor time of a merge of two fine-tuned BERTs, beside fine-tuning one for an epoch.

    python benchmarks/merge_time.py --work build/bench

Two folders of ``GEOMERGE_DATA/tiny-bert-glosses`` are merged as a user does, with 256 texts of each
and the default number of steps: reading, sketches, walk, pick and accuracies. An epoch is that of
the nouns' training file in batches of 32 by AdamW; its time is that of 60 batches, scaled.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any

import torch
from common import write_results

import geomerge as gm

NAMES = ("noun", "verb")
INPUTS, STEPS = 256, 240
BATCH, BATCHES = 32, 60


def merged(data: Path) -> dict[str, float]:
    """Seconds of the merge, and of its parts."""
    folders, tables = data / "tiny-bert-glosses", data / "wordnet-glosses"
    began = time.process_time()
    experts = [
        gm.Expert.load(folders / name, str(tables / f"{name}-train.csv"), sketch=False)
        for name in NAMES
    ]
    read = time.process_time()
    base = gm.Expert.load(folders / "base", inputs=False)
    few = [e.with_data(e.task, e.inputs.sample(INPUTS, 0)) for e in experts if e.inputs is not None]
    gm.merge(few, base=base, head="separate", steps=STEPS)
    return {"reading": read - began, "merge": time.process_time() - read}


def epoch(data: Path) -> dict[str, float]:
    """Seconds of an epoch of fine-tuning."""
    table = str(data / "wordnet-glosses" / "noun-train.csv")
    expert = gm.Expert.load(data / "tiny-bert-glosses" / "noun", table, inputs=False, sketch=False)
    assert expert.task is not None
    split = expert.task.train
    model, raw = expert.module().train(), split.inputs.raw
    assert isinstance(raw, dict)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-5)
    order = torch.randperm(len(split.labels), generator=torch.Generator().manual_seed(0))
    batches = order.split(BATCH)
    began = 0.0
    for k, index in enumerate(batches[: BATCHES + 3]):
        if k == 3:  # the first ones allocate
            began = time.process_time()
        out: Any = model(**{name: x[index] for name, x in raw.items()})
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(out.logits, split.labels[index]).backward()
        optimizer.step()
    return {"texts": len(order), "epoch": (time.process_time() - began) * len(batches) / BATCHES}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("build/bench"))
    parser.parse_args().work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    data = Path(os.environ["GEOMERGE_DATA"])
    found = {**epoch(data), **merged(data), "inputs": INPUTS, "steps": STEPS}
    found["ratio"] = found["merge"] / found["epoch"]
    write_results("merge_time.json", found)


if __name__ == "__main__":
    main()
