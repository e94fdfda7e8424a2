"""Merge of two causal language models of one base: perplexity on the texts of both.

    python benchmarks/causal_lm.py --work build/bench --seeds 0 1 2

A small GPT-2 (3 layers, width 64, tied embedding of 2000 byte pairs, 0.28 million weights) is
trained on the glosses of WordNet's training files (``pos-train.csv``), then fine-tuned on those of
nouns and on those of verbs, all weights, one base and two fine-tunes for each seed. Perplexities
are of the first 500 blocks of 32 tokens of the test files. Nothing is chosen on test splits: scales
of the rows without data are those that the methods' authors name for that case, the rest are
defaults.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from common import Rows, write_results
from fine_tunes import ARITHMETIC, TIES, blind, fisher, joint, regmean
from torch import Tensor

import geomerge as gm
from geomerge.comparison.methods.task_vectors import task_arithmetic, ties
from geomerge.data import ExampleOptions, Task
from geomerge.data.text import read_texts
from geomerge.errors import Problems
from geomerge.evaluation.measures import perplexity_of, score
from geomerge.expert import Expert
from geomerge.merging.prepare import PreparedMerge, prepare
from geomerge.merging.presets.sketches import mean_point
from geomerge.networks.hugging_face import load_tokenizer

NAMES = ("noun", "verb")
PIECES = 2000
BLOCK = 32
STEPS = {"base": 1200, "noun": 600, "verb": 400}
RATES = {"base": 3e-3, "noun": 1e-3, "verb": 1e-3}
TEXTS = 32  # blocks of a step
TESTED = 500
SKETCHED = 1000  # blocks of each sketch
WALKED = {256: 240, 4000: 600}  # steps of each teacher by unlabelled blocks of each task


def data() -> Path:
    return Path(os.environ["GEOMERGE_DATA"])


def untrained(seed: int) -> Any:
    """Return a GPT-2 without knowledge."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=PIECES, n_positions=64, n_embd=64, n_layer=3, n_head=4, resid_pdrop=0.0,
        embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return GPT2LMHeadModel(config)


def byte_pairs() -> Any:
    """Return a tokenizer of byte pairs, learned from the glosses."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    texts = read_texts(data() / "wordnet-glosses" / "pos-train.csv", ExampleOptions())
    trainer = trainers.BpeTrainer(
        vocab_size=PIECES, special_tokens=["<end>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    made.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<end>", model_max_length=64)


def write(model: Any, folder: Path, tokenizer: Any) -> None:
    """Write a model as a folder."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def opened(folder: Path, table: str) -> Expert:
    """Return a folder's model with the glosses of a table."""
    expert = Expert.load(folder, inputs=False)
    file = str(data() / "wordnet-glosses" / f"{table}-train.csv")
    task = expert.load_task(file, files=ExampleOptions(block_size=BLOCK))
    return expert.with_data(replace(task, test=task.test.first(TESTED)))


def trained(folder: Path, table: str, name: str, seed: int, onto: Path) -> None:
    """Train a folder's model on a table of glosses, and write it to another folder."""
    expert = opened(folder, table)
    assert expert.task is not None
    model: Any = expert.module().train()
    raw: Any = expert.task.train.inputs.raw
    ids: Tensor = raw["input_ids"]
    generator = torch.Generator().manual_seed(seed)
    steps, rate = STEPS[name], RATES[name]
    optimizer = torch.optim.AdamW(model.parameters(), rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, steps, pct_start=0.05)
    began = time.perf_counter()
    for step in range(steps):
        x = ids[torch.randint(len(ids), (TEXTS,), generator=generator)]
        loss = model(input_ids=x, labels=x).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 200 == 0:
            print(name, step, f"{float(loss):.3f}, {time.perf_counter() - began:.0f} s", flush=True)
    write(model.eval(), onto, load_tokenizer(folder))


def networks(work: Path, seed: int) -> dict[str, Path]:
    """Train the base and its fine-tunes, unless they lie there."""
    folders = {name: work / f"gpt2-{seed}-{name}" for name in ("base", *NAMES)}
    if not folders["base"].exists():
        fresh = work / f"gpt2-{seed}-untrained"
        write(untrained(seed), fresh, byte_pairs())
        trained(fresh, "pos", "base", seed, folders["base"])
    for name in NAMES:
        if not folders[name].exists():
            trained(folders["base"], name, name, seed, folders[name])
    return folders


def prepared(experts: list[Expert], base: Expert, **options: Any) -> PreparedMerge:
    """Put both into one space; their head is the tied embedding."""
    found = prepare(experts, gm.MergeOptions(**options), Problems(strict=True), base)
    assert found is not None
    return found


def tested(case: PreparedMerge, tasks: list[Task], w: Tensor) -> list[float]:
    """Return the perplexities of a point on the test texts."""
    pairs = zip(case.space, tasks, strict=True)
    return [perplexity_of(score(e.network, w, task.test)) for e, task in pairs]


def measured(work: Path, seed: int) -> dict[str, list[float]]:
    """Measure merges of the models of one seed."""
    rows = Rows(work / f"causal-lm-{seed}.json")
    folders = networks(work, seed)
    base = Expert.load(folders["base"], inputs=False)
    experts = [opened(folders[name], name) for name in NAMES]
    tasks = [e.task for e in experts if e.task is not None]
    sketched = [e.with_sketch(inputs=SKETCHED) for e in experts]
    case = prepared([blind(e) for e in sketched], base)
    vectors = [e.weights for e in case.space]
    at = case.base
    assert at is not None
    made: dict[str, Callable[[], Tensor]] = {
        "base": lambda: at,
        "average": case.space.middle,
        "task arithmetic": lambda: task_arithmetic(at, vectors, ARITHMETIC),
        "TIES": lambda: ties(at, vectors, TIES),
        "Fisher, diagonal": lambda: fisher(case),
        "Kronecker mean (sketches)": lambda: mean_point(case),
    }
    rows.row("experts", lambda: [
        perplexity_of(score(e.network, e.weights, t.test))
        for e, t in zip(experts, tasks, strict=True)
    ])  # fmt: skip
    for name, make in made.items():
        rows.row(name, lambda make=make: tested(case, tasks, make()))

    def with_inputs(
        count: int, walk: Callable[[PreparedMerge], Tensor], known: list[Expert]
    ) -> list[float]:
        few = [blind(e, inputs=e.inputs.sample(count, 0)) for e in known if e.inputs is not None]
        found = prepared(few, base, steps=WALKED[count], preset="joint")
        return tested(found, tasks, walk(found))

    for count in WALKED:
        rows.row(f"RegMean, {count} texts", lambda n=count: with_inputs(n, regmean, experts))
        title = f"joint walk, sketches and {count} texts"
        rows.row(title, lambda n=count: with_inputs(n, joint, sketched))
    return rows.done


def summary(found: list[dict[str, list[float]]]) -> dict[str, dict[str, Any]]:
    """Return the mean perplexities of all seeds, and the worst rises above the experts'."""
    table: dict[str, dict[str, Any]] = {}
    for name in found[0]:
        rises = [
            max(v / e - 1 for v, e in zip(rows[name], rows["experts"], strict=True))
            for rows in found
        ]
        table[name] = {
            "mean": [statistics.mean(v) for v in zip(*(rows[name] for rows in found), strict=True)],
            "worst_rise": 100 * statistics.mean(rises),
            "worst_rises": [100 * rise for rise in rises],
        }
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("build/bench"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    found = [measured(given.work, seed) for seed in given.seeds]
    write_results(
        "causal_lm.json",
        {"tasks": NAMES, "seeds": given.seeds, "sketched": SKETCHED, "tested": TESTED,
         "block": BLOCK, "steps": WALKED, "table": summary(found)},
    )  # fmt: skip


if __name__ == "__main__":
    main()
