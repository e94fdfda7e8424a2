"""Fine-tunes of one base merged with no data, and with a few unlabelled inputs.

    python benchmarks/fine_tunes.py --work build/bench            # both cases
    python benchmarks/fine_tunes.py --only bert                   # or cnn --seeds 0 1 2

``bert``: the three classifiers of WordNet glosses in ``GEOMERGE_DATA/tiny-bert-glosses``, each with
its own pooler and head over one trunk. ``cnn``: six tasks of MNIST and Fashion-MNIST (as they are,
turned, inverted, upside down), fine-tuned here from one network trained on both.
Nothing is chosen on test splits: scales are those that the methods' authors name for the case
without validation data, the damping of the Kronecker mean is the default. All rows merge the same
trunk. Test accuracies are of the first 3000 test examples of each task.
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from common import Rows, write_results
from torch import Tensor, nn

import geomerge as gm
from geomerge.comparison.methods.dare import drop_and_rescale
from geomerge.comparison.methods.regmean import layer_grams, regress
from geomerge.comparison.methods.task_matrices import (
    isotropic,
    least_interference,
    merge_task_matrices,
    orthogonal_singular_vectors,
)
from geomerge.comparison.methods.task_vectors import task_arithmetic, ties
from geomerge.data import Normalisation, Task
from geomerge.errors import Problems
from geomerge.evaluation.accuracy import accuracy
from geomerge.expert import Expert
from geomerge.merging.choice import choose_preset, choose_rule
from geomerge.merging.prepare import PreparedMerge, prepare
from geomerge.merging.presets.sketches import mean_point
from geomerge.merging.recording import Monitor, Recorder
from geomerge.merging.stages import walk_plan

SKETCHED = 2000  # inputs of each sketch, and of each task's Gram matrices
FEW = (16, 64, 256)
TESTED = 3000
STEPS = 60  # of each teacher in the joint walk
NAMES = ("noun", "verb", "pos")
COUNTS = (2, 4, 6)  # of the six tasks, merged
# For merging without validation data: Yadav et al. 2023, section 4; Jin et al. 2023, section 5.
ARITHMETIC, TIES, REGMEAN = 0.4, 1.0, 0.9


def prepared(experts: Sequence[Expert], base: Expert, **options: Any) -> PreparedMerge:
    """Put fine-tunes into one space, each with its own head."""
    settings = gm.MergeOptions(head="separate", **options)
    found = prepare(experts, settings, Problems(strict=True), base)
    assert found is not None
    return found


def blind(expert: Expert, **changes: Any) -> Expert:
    """Return an expert without labels and inputs."""
    return replace(expert, **{"task": None, "inputs": None, "notes": (), **changes})


def fisher(case: PreparedMerge) -> Tensor:
    """Mean weighted by the diagonals of the sketches."""
    diagonals = [case.sketch(e).metric.diagonal_of(lambda v: v).clamp(min=0) for e in case.space]
    total = sum(diagonals) + 1e-12
    return sum(d * e.weights for d, e in zip(diagonals, case.space, strict=True)) / total + (
        1e-12 * case.space.middle() / total
    )


def regmean(case: PreparedMerge, through: bool = False) -> Tensor:
    """Regression mean of each matrix layer; ``through`` is RegMean++."""
    experts = case.space.experts
    grams = [layer_grams(e.network, e.weights, e.inputs) for e in experts]
    heads = case.heads.layers
    return regress(experts, grams, case.space.middle(), REGMEAN, through=through, heads=heads)


def matrices(case: PreparedMerge, merge: Callable[[Tensor], Tensor], scale: float = 1.0) -> Tensor:
    """Merged task matrices, added to the base."""
    assert case.base is not None
    vectors = [e.weights for e in case.space]
    heads = case.heads.layers
    return case.base + scale * merge_task_matrices(
        case.space.network, case.base, vectors, merge, heads
    )


def kronecker(case: PreparedMerge) -> Tensor:
    """Mean in the metrics of the sketches."""
    return mean_point(case)


def joint(case: PreparedMerge) -> Tensor:
    """Joint walk from that mean, picked by the smallest largest drift on the same inputs."""
    preset = choose_preset(case)
    rule = choose_rule(preset)
    with TemporaryDirectory() as folder:
        recorder = Recorder(Path(folder), Monitor(case.space), 16)
        (picked,) = walk_plan(preset, rule, recorder)
    return picked.w


def dropped(base: Tensor, vectors: Sequence[Tensor]) -> list[Tensor]:
    """Return networks with a tenth of their task vectors, rescaled."""
    generator = torch.Generator().manual_seed(0)
    return [base + drop_and_rescale(w - base, generator) for w in vectors]


def data_free(case: PreparedMerge) -> dict[str, Callable[[], Tensor]]:
    """Return the rows that see no data, by name."""
    vectors = [e.weights for e in case.space]
    base = case.base
    assert base is not None
    return {
        "average": case.space.middle,
        "task arithmetic": lambda: task_arithmetic(base, vectors, ARITHMETIC),
        "TIES": lambda: ties(base, vectors, TIES),
        "DARE": lambda: task_arithmetic(base, dropped(base, vectors), ARITHMETIC),
        "ISO-C": lambda: matrices(case, isotropic),
        "TSV-M": lambda: matrices(case, orthogonal_singular_vectors),
        "WUDI": lambda: matrices(case, least_interference),
        "Fisher, diagonal": lambda: fisher(case),
        "Kronecker mean (sketches)": lambda: kronecker(case),
    }


def tested(case: PreparedMerge, tasks: Sequence[Task], w: Tensor) -> list[float]:
    """Return the test accuracies of a point."""
    pairs = zip(case.space, tasks, strict=True)
    return [accuracy(e.network, w, task.test.first(TESTED)) for e, task in pairs]


def bert(work: Path) -> dict[str, Any]:
    """Measure the three BERTs."""
    data = Path(os.environ["GEOMERGE_DATA"])
    folders = data / "tiny-bert-glosses"
    base = Expert.load(folders / "base", inputs=False)
    tables = data / "wordnet-glosses"
    experts = [Expert.load(folders / n, str(tables / f"{n}-train.csv")) for n in NAMES]
    tasks = [e.task for e in experts if e.task is not None]
    sketched = [e.with_sketch(inputs=SKETCHED) for e in experts]
    case = prepared([blind(e) for e in sketched], base)
    rows = Rows(work / "fine-tunes-bert.json")
    rows.row("experts", lambda: [e.accuracy() for e in map(_short, experts)])
    for name, make in data_free(case).items():
        rows.row(name, lambda make=make: tested(case, tasks, make()))

    def with_inputs(
        count: int, walk: Callable[[PreparedMerge], Tensor], known: list[Expert] = experts
    ) -> list[float]:
        few = [blind(e, inputs=e.inputs.sample(count, 0)) for e in known]
        found = prepared(few, base, steps=STEPS, preset="joint")
        return tested(found, tasks, walk(found))

    rows.row(f"RegMean, {SKETCHED} inputs", lambda: with_inputs(SKETCHED, regmean))
    for count in FEW:
        rows.row(f"RegMean, {count} inputs", lambda n=count: with_inputs(n, regmean))
        rows.row(
            f"RegMean++, {count} inputs",
            lambda n=count: with_inputs(n, lambda c: regmean(c, through=True)),
        )
        title = f"joint walk, sketches and {count} inputs"
        rows.row(title, lambda n=count: with_inputs(n, joint, sketched))
    return rows.done


def _short(expert: Expert) -> Expert:
    assert expert.task is not None
    return replace(expert, task=replace(expert.task, test=expert.task.test.first(TESTED)))


def network(classes: int) -> nn.Module:
    """Return the untrained CNN, 0.89 million weights."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(3136, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, classes),
    )  # fmt: skip


def turned(x: Tensor) -> Tensor:
    return torch.rot90(x, 1, (2, 3))


CNN = {
    "mnist": ("mnist", lambda x: x),
    "fashion": ("fashion-mnist", lambda x: x),
    "mnist turned": ("mnist", turned),
    "fashion turned": ("fashion-mnist", turned),
    "mnist inverted": ("mnist", lambda x: 255 - x),
    "fashion upside down": ("fashion-mnist", lambda x: x.flip(2)),
}


def image_task(name: str) -> Task:
    """Return one of the six tasks."""
    source, change = CNN[name]
    whole = gm.load_task(source)
    pairs = [(change(s.inputs.raw), s.labels) for s in (whole.train, whole.select, whole.test)]
    (x, y), select, test = pairs
    numbers = Normalisation((0.2,), (0.35,))
    return Task.from_tensors(x, y, select=select, test=test, name=name, normalisation=numbers)


def trained(module: nn.Module, x: Tensor, y: Tensor, rate: float, seed: int) -> nn.Module:
    """Train for an epoch by Adam with a falling rate."""
    torch.manual_seed(seed)
    order = torch.randperm(len(x)).split(128)
    optimizer = torch.optim.Adam(module.parameters(), rate)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, len(order))
    for index in order:
        optimizer.zero_grad()
        nn.functional.cross_entropy(module((x[index] / 255 - 0.2) / 0.35), y[index]).backward()
        optimizer.step()
        schedule.step()
    return module.eval()


def cnn(work: Path, seed: int, counts: Sequence[int]) -> dict[str, Any]:
    """Train the base and its fine-tunes of one seed, and measure merges of some of them."""
    rows = Rows(work / f"fine-tunes-cnn-{seed}.json")
    if f"{counts[-1]}: RegMean++, {SKETCHED} inputs" in rows.done:  # the last row
        return rows.done
    tasks = [image_task(name) for name in CNN]
    file = work / f"fine-tunes-cnn-{seed}.pt"
    if not file.exists():
        torch.manual_seed(seed)
        half = [t.train.first(30_000) for t in tasks[:2]]
        x = torch.cat([s.inputs.raw for s in half])
        y = torch.cat([half[0].labels, half[1].labels + 10])
        modules = [trained(network(20), x, y, 2e-3, seed)]
        for k, task in enumerate(tasks):
            module = network(10)
            shared = {n: v for n, v in modules[0].state_dict().items() if not n.startswith("11.")}
            module.load_state_dict(shared, strict=False)
            own = task.train.first(30_000)
            modules.append(trained(module, own.inputs.raw, own.labels, 1e-3, seed + k))
        torch.save([m.state_dict() for m in modules], file)
    states = torch.load(file, weights_only=True)
    modules = [network(20), *(network(10) for _ in tasks)]
    for module, state in zip(modules, states, strict=True):
        module.load_state_dict(state)
    base = Expert.from_module(modules[0], inputs=False)
    experts = [Expert.from_module(m, t) for m, t in zip(modules[1:], tasks, strict=True)]
    rows.row("experts", lambda: [e.accuracy() for e in map(_short, experts)])
    sketched = [e.with_sketch(inputs=SKETCHED) for e in experts]
    for count in counts:
        case = prepared([blind(e) for e in sketched[:count]], base)
        few = [blind(e, inputs=e.inputs.sample(SKETCHED, 0)) for e in sketched[:count]]
        seeing = prepared(few, base)
        made = {
            **data_free(case),
            f"RegMean, {SKETCHED} inputs": lambda s=seeing: regmean(s),
            f"RegMean++, {SKETCHED} inputs": lambda s=seeing: regmean(s, through=True),
        }
        for name, make in made.items():
            rows.row(
                f"{count}: {name}", lambda m=make, c=case: tested(c, tasks[: len(c.space)], m())
            )
    return rows.done


def summary(rows: dict[str, list[float]], experts: list[float]) -> dict[str, dict[str, Any]]:
    """Return accuracies with the share of the experts' that is kept, and the worst drop."""
    found = {}
    for name, values in rows.items():
        own = experts[: len(values)]
        pairs = list(zip(values, own, strict=True))
        found[name] = {
            "mean": [100 * v for v in values],
            "kept": statistics.mean(v / e for v, e in pairs),
            "worst_drop": 100 * max(e - v for v, e in pairs),
        }
    return found


def columns(rows: list[list[float]]) -> list[float]:
    """Return the mean of each column."""
    return [statistics.mean(values) for values in zip(*rows, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("build/bench"))
    parser.add_argument("--only", choices=("bert", "cnn"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the CNNs")
    parser.add_argument("--counts", type=int, nargs="+", default=[*COUNTS], help="merged CNNs")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    if given.only != "cnn":
        found = bert(given.work)
        write_results(
            "fine_tunes_bert.json",
            {"tasks": NAMES, "sketched": SKETCHED, "tested": TESTED, "steps": STEPS,
             "table": summary(found, found["experts"])},
        )  # fmt: skip
    if given.only != "bert":
        seeds = [cnn(given.work, seed, given.counts) for seed in given.seeds]
        tables = [summary(found, found["experts"]) for found in seeds]
        table = {
            name: {
                "mean": columns([t[name]["mean"] for t in tables]),
                "worst_drop": statistics.mean(t[name]["worst_drop"] for t in tables),
                "worst_drops": [t[name]["worst_drop"] for t in tables],
            }
            for name in tables[0]
            if name == "experts" or int(name[0]) in given.counts
        }
        write_results(
            "fine_tunes_cnn.json",
            {"tasks": list(CNN), "counts": given.counts, "seeds": given.seeds,
             "sketched": SKETCHED, "tested": TESTED, "table": table},
        )  # fmt: skip


if __name__ == "__main__":
    main()
