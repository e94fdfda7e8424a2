"""Fine-tunes of one base merged with no data, and with a few unlabelled inputs.

    python benchmarks/fine_tunes.py --work build/bench            # all cases
    python benchmarks/fine_tunes.py --only bert                   # or cnn, or vit --seeds 0 1 2

``bert``: the three classifiers of WordNet glosses in ``GEOMERGE_DATA/tiny-bert-glosses``, each with
its own pooler and head over one trunk. ``cnn``: six tasks of MNIST and Fashion-MNIST (as they are,
turned, inverted, upside down), fine-tuned here from one network trained on both, heads first.
``vit``: a small vision transformer and the first three of these tasks.
Nothing is chosen on test splits: scales are those that the methods' authors name for the case
without validation data, the damping of the Kronecker mean is the default. All rows merge the same
trunk. Test accuracies are of the first 3000 test examples of each task.
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
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
from geomerge.merging.measuring import inputs_of
from geomerge.merging.prepare import PreparedMerge, prepare
from geomerge.merging.presets.sketches import mean_point
from geomerge.merging.recording import Monitor, Recorder
from geomerge.merging.stages import walk_plan
from geomerge.networks.architectures import create_network

SKETCHED = 2000  # inputs of each sketch, and of each task's Gram matrices
FEW = (16, 64, 256)
TESTED = 3000
STEPS = {"bert": 240, "images": 60}  # of each teacher in the joint walk
NAMES = ("noun", "verb", "pos")
MEAN, DEVIATION = 0.2, 0.35  # of the images
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


def regmean_through(case: PreparedMerge) -> Tensor:
    """RegMean++."""
    return regmean(case, through=True)


def regmean(case: PreparedMerge, through: bool = False) -> Tensor:
    """Regression mean of each matrix layer; ``through`` is RegMean++."""
    experts = case.space.experts
    grams = [layer_grams(e.network, e.weights, inputs_of(e)) for e in experts]
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
        found = prepared(few, base, steps=STEPS["bert"], preset="joint")
        return tested(found, tasks, walk(found))

    rows.row(f"RegMean, {SKETCHED} inputs", lambda: with_inputs(SKETCHED, regmean))
    for count in FEW:
        rows.row(f"RegMean, {count} inputs", lambda n=count: with_inputs(n, regmean))
        rows.row(
            f"RegMean++, {count} inputs",
            lambda n=count: with_inputs(n, regmean_through),
        )
        title = f"joint walk, sketches and {count} inputs"
        rows.row(title, lambda n=count: with_inputs(n, joint, sketched))
    return rows.done


def _short(expert: Expert) -> Expert:
    assert expert.task is not None
    return replace(expert, task=replace(expert.task, test=expert.task.test.first(TESTED)))


def convolutions(classes: int) -> nn.Module:
    """Return the untrained CNN, 0.89 million weights."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(3136, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, classes),
    )  # fmt: skip


def transformer(classes: int) -> nn.Module:
    """Return the untrained vision transformer, 0.8 million weights."""
    return create_network("vit-cifar", (1, 28, 28), classes, torch.initial_seed() % 2**31)


@dataclass(frozen=True)
class Images:
    """Networks of images, their tasks and training.

    Attributes:
        network: Function of the number of classes that returns an untrained network.
        tasks: Names of the tasks; the base knows the first two.
        counts: Numbers of tasks merged.
        examples: Training examples of each task, of the base and of a fine-tune.
        epochs: Epochs of the base.
        rate: Learning rate of the fine-tunes.
        few: Numbers of inputs of each task in joint walks.
    """

    network: Callable[[int], nn.Module]
    tasks: tuple[str, ...]
    counts: tuple[int, ...]
    examples: tuple[int, int]
    epochs: int
    rate: float
    few: tuple[int, ...] = ()


def turned(x: Tensor) -> Tensor:
    return torch.rot90(x, 1, (2, 3))


TASKS = {
    "mnist": ("mnist", lambda x: x),
    "fashion": ("fashion-mnist", lambda x: x),
    "mnist turned": ("mnist", turned),
    "fashion turned": ("fashion-mnist", turned),
    "mnist inverted": ("mnist", lambda x: 255 - x),
    "fashion upside down": ("fashion-mnist", lambda x: x.flip(2)),
}


CASES = {
    "cnn": Images(convolutions, tuple(TASKS), (2, 4, 6), (30_000, 30_000), 2, 1e-3),
    "vit": Images(transformer, tuple(TASKS)[:3], (3,), (20_000, 10_000), 3, 5e-4, (64, 256)),
}


def image_task(name: str) -> Task:
    """Return one of the tasks."""
    source, change = TASKS[name]
    whole = gm.load_task(source)
    pairs = [(change(s.inputs.raw), s.labels) for s in (whole.train, whole.select, whole.test)]
    (x, y), select, test = pairs
    numbers = Normalisation((MEAN,), (DEVIATION,))
    return Task.from_tensors(x, y, select=select, test=test, name=name, normalisation=numbers)


def normalised(x: Tensor) -> Tensor:
    return (x / 255 - MEAN) / DEVIATION


def trained(
    module: nn.Module,
    x: Tensor,
    y: Tensor,
    rate: float,
    seed: int,
    change: Callable[[Tensor], Tensor] = normalised,
) -> nn.Module:
    """Train for an epoch by Adam with a falling rate, on inputs as ``change`` returns them."""
    torch.manual_seed(seed)
    order = torch.randperm(len(x)).split(128)
    optimizer = torch.optim.Adam(module.parameters(), rate)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, len(order))
    for index in order:
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(change(x[index])), y[index]).backward()
        optimizer.step()
        schedule.step()
    return module.eval()


def head(module: nn.Module) -> nn.Linear:
    return [m for m in module.modules() if isinstance(m, nn.Linear)][-1]


def train_head(
    module: nn.Module,
    x: Tensor,
    y: Tensor,
    seed: int,
    change: Callable[[Tensor], Tensor] = normalised,
) -> None:
    """Train the last layer alone, before the others move (Kumar et al. 2022, arXiv 2202.10054)."""
    last, kept = head(module), []
    hook = last.register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0]))
    with torch.no_grad():
        for part in x.split(1000):
            module(change(part))
    hook.remove()
    features = torch.cat(kept)
    optimizer = torch.optim.Adam(last.parameters(), 3e-3)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(3):
        for index in torch.randperm(len(x), generator=generator).split(128):
            optimizer.zero_grad()
            nn.functional.cross_entropy(last(features[index]), y[index]).backward()
            optimizer.step()


def networks(case: Images, tasks: Sequence[Task], seed: int, file: Path) -> list[nn.Module]:
    """Return the base and its fine-tunes of one seed, trained unless they lie in the file."""
    modules = [case.network(20), *(case.network(10) for _ in tasks)]
    if not file.exists():
        torch.manual_seed(seed)
        base, own = case.network(20), case.examples
        half = [t.train.first(own[0]) for t in tasks[:2]]
        x = torch.cat([s.inputs.raw for s in half])
        y = torch.cat([half[0].labels, half[1].labels + 10])
        for epoch in range(case.epochs):
            trained(base.train(), x, y, (2e-3, 1e-3, 5e-4)[epoch], seed + 100 * epoch)
        made = [base]
        of_head = {id(p) for p in head(base).parameters()}
        shared = {n: p.detach() for n, p in base.named_parameters() if id(p) not in of_head}
        for k, task in enumerate(tasks):
            module = case.network(10)
            module.load_state_dict(shared, strict=False)
            part = task.train.first(own[1])
            images = part.inputs.raw
            assert isinstance(images, Tensor)
            train_head(module.eval(), images, part.labels, seed + k)
            made.append(trained(module.train(), images, part.labels, case.rate, seed + k))
        torch.save([m.state_dict() for m in made], file)
    for module, state in zip(modules, torch.load(file, weights_only=True), strict=True):
        module.load_state_dict(state)
        module.eval()
    return modules


def images(work: Path, name: str, seed: int) -> dict[str, Any]:
    """Train the base and its fine-tunes of one seed, and measure merges of some of them."""
    case = CASES[name]
    rows = Rows(work / f"fine-tunes-{name}-{seed}.json")
    last = [f"joint walk, sketches and {n} inputs" for n in case.few]
    last = last or [f"RegMean++, {SKETCHED} inputs"]
    if f"{case.counts[-1]}: {last[-1]}" in rows.done:
        return rows.done
    tasks = [image_task(task) for task in case.tasks]
    modules = networks(case, tasks, seed, work / f"fine-tunes-{name}-{seed}.pt")
    base = Expert.from_module(modules[0], inputs=False)
    experts = [Expert.from_module(m, t) for m, t in zip(modules[1:], tasks, strict=True)]
    rows.row("experts", lambda: [e.accuracy() for e in map(_short, experts)])
    sketched = [e.with_sketch(inputs=SKETCHED) for e in experts]
    for count in case.counts:
        some, own = sketched[:count], tasks[:count]
        free = prepared([blind(e) for e in some], base)
        made = data_free(free)
        for n in (*case.few, SKETCHED):
            made[f"RegMean, {n} inputs"] = partial(seeing, some, base, n, regmean)
            made[f"RegMean++, {n} inputs"] = partial(seeing, some, base, n, regmean_through)
        for n in case.few:
            title = f"joint walk, sketches and {n} inputs"
            made[title] = partial(
                seeing, some, base, n, joint, steps=STEPS["images"], preset="joint"
            )
        for title, make in made.items():
            rows.row(f"{count}: {title}", partial(made_and_tested, free, own, make))
    return rows.done


def seeing(
    experts: Sequence[Expert],
    base: Expert,
    inputs: int,
    merge: Callable[[PreparedMerge], Tensor],
    **options: Any,
) -> Tensor:
    """Return a merge of networks with sketches that sees a few inputs of each."""
    few = [blind(e, inputs=e.inputs.sample(inputs, 0)) for e in experts if e.inputs is not None]
    return merge(prepared(few, base, **options))


def made_and_tested(
    case: PreparedMerge, tasks: Sequence[Task], make: Callable[[], Tensor]
) -> list[float]:
    return tested(case, tasks, make())


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
    parser.add_argument("--only", choices=("bert", *CASES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the images")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    if given.only in (None, "bert"):
        found = bert(given.work)
        write_results(
            "fine_tunes_bert.json",
            {"tasks": NAMES, "sketched": SKETCHED, "tested": TESTED, "steps": STEPS["bert"],
             "table": summary(found, found["experts"])},
        )  # fmt: skip
    for name, case in CASES.items():
        if given.only not in (None, name):
            continue
        seeds = [images(given.work, name, seed) for seed in given.seeds]
        tables = [summary(found, found["experts"]) for found in seeds]
        table = {
            row: {
                "mean": columns([t[row]["mean"] for t in tables]),
                "worst_drop": statistics.mean(t[row]["worst_drop"] for t in tables),
                "worst_drops": [t[row]["worst_drop"] for t in tables],
            }
            for row in tables[0]
        }
        write_results(
            f"fine_tunes_{name}.json",
            {"tasks": case.tasks, "counts": case.counts, "seeds": given.seeds,
             "sketched": SKETCHED, "tested": TESTED, "steps": STEPS["images"],
             "table": table},
        )  # fmt: skip


if __name__ == "__main__":
    main()
