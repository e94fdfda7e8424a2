"""Tables of README and documentation, written from benchmarks/results/ between markers."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent


def read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ROOT / "benchmarks" / "results" / name).read_text())
    return found


def markdown(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def percent(values: list[float]) -> str:
    return " / ".join(f"{v:.1f}" for v in values)


def merge() -> str:
    """MNIST / Fashion-MNIST test accuracies, by network."""
    results, timing = read("merge.json")["table"], read("merge_timing.json")["timing"]
    names = list(dict.fromkeys(name for rows in results.values() for name in rows))
    table = []
    for name in names:
        found = [rows.get(name) for rows in results.values()]
        table.append([name, *(percent(row["mean"]) if row else "-" for row in found)])
    ratios = [f"{timing[arch]['ratio']:.2f}" if arch in timing else "-" for arch in results]
    table.append(["time of one walk / of training one expert", *ratios])
    return markdown(["", *results], table)


def surrogate() -> str:
    """One of two networks known by its weights only, by network and pick."""
    table = []
    for arch, rows in read("surrogate.json")["table"].items():
        for name, row in rows.items():
            other = name.startswith("other way round")  # whose numbers begin with Fashion-MNIST
            mean = row["mean"][::-1] if other else row["mean"]
            text = f"{arch}, {name.replace('surrogate, ', '')}"
            table.append([text, percent(mean), f"{row['least']:.1f}", str(len(row["seeds"]))])
    return markdown(["network, pick", "MNIST / Fashion-MNIST", "least of all", "seeds"], table)


def resnet20() -> str:
    """Halves of CIFAR-10 in one ResNet20, under two head protocols, by pairs of networks."""
    return markdown(
        [
            "", "", "classes 0-4 / 5-9", "with statistics per task", "worst drop", "samples",
            "seconds of one core",
        ],
        list(halves("resnet20.json")),
    )  # fmt: skip


def vit_cifar() -> str:
    """Halves of CIFAR-10 in one vision transformer with separate heads."""
    table = [row[:3] + row[4:] for row in halves("vit_cifar.json")]  # it has no statistics
    return markdown(
        ["", "", "classes 0-4 / 5-9", "worst drop", "samples", "seconds of one core"], table
    )


def halves(file: str) -> Iterator[list[str]]:
    """Yield the rows of all pairs of networks of halves of CIFAR-10 in a file."""
    for pair, cases in enumerate(read(file)["tables"].values(), 1):
        for case, rows in cases.items():
            alone = rows["experts"]["test"]
            for name, row in rows.items():
                drop = max(100 * (a - b) for a, b in zip(alone, row["test"], strict=True))
                own = row.get("statistics per task")
                yield [
                    f"pair {pair}, {case}" if name == "experts" else "", name.replace("-", " "),
                    percent([100 * v for v in row["test"]]),
                    percent([100 * v for v in own]) if own else "-", f"{drop:.1f}",
                    f"{row['samples']:,}" if row.get("samples") else "-",
                    f"{row['seconds']:.0f}" if row.get("samples", 1) and "seconds" in row else "-",
                ]  # fmt: skip


def vgg11_shares() -> str:
    """Two VGG11 of non-IID shares of CIFAR-10 in one head: accuracies of all classes."""
    table = []
    for name, row in read("vgg11.json")["shares"]["table"].items():
        # Both tasks have the same test split.
        scores = row["test"] if name == "parents" else row["test"][:1]
        table.append([
            name.replace("-", " "), percent([100 * v for v in scores]),
            f"{row['samples']:,}" if row.get("samples") else "-",
            f"{row['seconds']:.0f}" if row.get("samples") else "-",
        ])  # fmt: skip
    return markdown(["", "all ten classes", "samples", "seconds of one core"], table)


def vgg11_halves() -> str:
    """Two fine-tunes of one VGG11 on halves of CIFAR-10, with separate heads."""
    rows = dict(read("vgg11.json")["halves"]["table"])
    sketches = rows.pop("sketches")
    alone = rows["networks alone"]["test"]
    table = []
    for name, row in rows.items():
        drop = max(100 * (a - b) for a, b in zip(alone, row["test"], strict=True))
        seconds = f"{row['seconds']:.0f}" if "seconds" in row else "-"
        table.append([name, percent([100 * v for v in row["test"]]), f"{drop:.1f}", seconds])
    table.append(["the two sketches", "-", "-", f"{sketches['seconds']:.0f}"])
    return markdown(["", "classes 0-4 / 5-9", "worst drop", "seconds of one core"], table)


def heads() -> str:
    """Pairs of tasks under the head protocols."""
    results = read("heads.json")["table"]
    table = []
    for pair, rows in results.items():
        first = next(iter(rows.values()))
        table.append([pair, "the two networks alone", percent(first["experts"]), ""])
        for name, row in rows.items():
            table.append(["", name, percent(row["mean"]), f"{row['worst_drop']:.1f}"])
    return markdown(["tasks", "head, walk", "test", "worst drop"], table)


def three() -> str:
    """Three networks in one."""
    results = read("three_networks.json")
    table = [[name, percent(row["mean"])] for name, row in results["table"].items()]
    return markdown(["", " / ".join(results["tasks"])], table)


def fine_tunes() -> str:
    """Three BERTs in one trunk."""
    results = read("fine_tunes_bert.json")
    table = [
        [name, percent(row["mean"]), f"{100 * row['kept']:.1f}", f"{row['worst_drop']:.1f}"]
        for name, row in results["table"].items()
    ]
    heading = " / ".join(results["tasks"])
    return markdown(["", heading, "share of the networks alone, %", "worst drop"], table)


def six_tasks() -> str:
    """Several fine-tunes of one CNN: mean accuracy and worst drop."""
    return image_tasks("fine_tunes_cnn.json")


def three_image_tasks() -> str:
    """Three fine-tunes of one vision transformer: mean accuracy and worst drop."""
    return image_tasks("fine_tunes_vit.json")


def image_tasks(file: str) -> str:
    results = read(file)
    rows, counts = results["table"], [str(count) for count in results["counts"]]
    names = [name.partition(": ")[2] for name in rows if name.startswith(f"{counts[0]}: ")]
    table = []
    for name in names:
        found = [rows[f"{count}: {name}"] for count in counts]
        table.append([name, *(
            f"{sum(row['mean']) / len(row['mean']):.1f} / {row['worst_drop']:.1f}" for row in found
        )])  # fmt: skip
    own = rows["experts"]["mean"]
    alone = [f"{sum(own[: int(k)]) / int(k):.1f} / 0.0" for k in counts]
    heading = [f"{k} tasks: mean / worst drop" for k in counts]
    return markdown(["", *heading], [["experts", *alone], *table])


def merge_time() -> str:
    """A merge of two BERTs beside an epoch of fine-tuning: processor seconds."""
    found = read("merge_time.json")
    table = [
        [f"an epoch of {found['texts']:,} texts in batches of 32", f"{found['epoch']:.0f}"],
        [f"merge, {found['inputs']} texts of each, {found['steps']} steps of each teacher",
         f"{found['merge']:.0f}"],
        ["merge / epoch", f"{found['ratio']:.2f}"],
    ]  # fmt: skip
    return markdown(["", "processor seconds"], table)


def bert_base() -> str:
    """Sketches of two networks as large as BERT-base, and their merge without data."""
    found = read("bert_base.json")
    table = [
        [name if name == "merge" else f"{name}, {found['inputs']} inputs",
         f"{row['processor_seconds']:.0f}", f"{row['peak_gb']:.1f}",
         f"{row['peak_gb'] / found['network_gb']:.1f}"]
        for name, row in found["table"].items()
    ]  # fmt: skip
    return markdown(["", "processor seconds", "peak, GB", "peak / network in float32"], table)


def vit() -> str:
    """Check and merge of two ViT-B/16, and what the check said of the merge."""
    found = read("vit.json")
    rows = found["table"]
    said = rows["check"]["said"]
    held = sum(n for part, n in said["memory"].items() if "disk" not in part)
    table = [
        [name, f"{row['processor_seconds']:.0f}", f"{row['peak_gb']:.1f}"]
        for name, row in rows.items()
    ]
    table.append(
        ["merge, as the check said", f"{said['time']['seconds']:.0f}", f"{held / 2**30:.1f}"]
    )
    return markdown(["", "processor seconds", "peak, GB"], table)


def sharded() -> str:
    """Memory and time of each process of a sharded merge."""
    table = [
        [size, *(f"{row[name] / 1e6:.1f}" for name in ("weights", "momentum", "factors")),
         f"{row['peak'] / 1e9:.2f}", f"{row['measuring']:.1f}", f"{row['step']:.1f}"]
        for size, row in read("sharded.json")["table"].items()
    ]  # fmt: skip
    header = [
        "processes", "weights, MB", "momentum, MB", "factors, MB", "peak, GB", "measurement, s",
        "step, s",
    ]  # fmt: skip
    return markdown(header, table)


def language_models() -> str:
    """Two causal language models in one: perplexities, and the rise above the experts'."""
    results = read("causal_lm.json")
    table = [
        [name, percent(row["mean"]), f"{row['worst_rise']:.1f}"]
        for name, row in results["table"].items()
    ]
    return markdown(["perplexity", " / ".join(results["tasks"]), "worst rise, %"], table)


def cifar() -> str:
    """Halves of CIFAR-10, one head each."""
    table = []
    for net, rows in read("cifar.json")["table"].items():
        first = next(iter(rows.values()))
        table.append([net.removeprefix("nets:"), "the two networks alone",
                      percent([100 * v for v in first["experts"]])])  # fmt: skip
        for name, row in rows.items():
            table.append(["", name, percent([100 * v for v in row["balanced"]])])
    return markdown(["network", "head, walk", "classes 0-4 / 5-9"], table)


def sparsify() -> str:
    """LeNet-300-100 on MNIST: one column per sparsity."""
    rows = read("sparsify.json")["table"]
    levels = ["70 %", "90 %", "95 %", "98 %"]
    names = [name.partition(": ")[2] for name in rows if name.startswith("98 %: ")]
    table = [["dense", *[f"{rows['dense']['mean']:.2f}"] * len(levels)]]
    for name in names:
        found = [rows.get(f"{level}: {name}") for level in levels]
        table.append([name, *(f"{row['mean']:.2f}" if row else "-" for row in found)])
    return markdown(["", *levels], table)


def sparsify_few() -> str:
    """The same with a thousand inputs."""
    rows = read("sparsify.json")["table"]
    few = {name: row for name, row in rows.items() if "inputs: " in name}
    table = [[name.partition(": ")[2], f"{row['mean']:.2f}"] for name, row in few.items()]
    return markdown(["1000 inputs, 98 %", "test"], table)


def sparsify_vgg() -> str:
    """VGG11 on CIFAR-10."""
    rows = dict(read("sparsify_vgg.json")["table"])
    moves = rows.pop("C3 and C4", [])
    table = [[name, f"{r['test']:.2f}", f"{r['epochs']:.2f}"] for name, r in rows.items()]
    for move in moves:
        table.append([f"{move['name']}, walked", f"{move['test']:.2f}", f"{move['epochs']:.2f}"])
        table.append([f"{move['name']}, just cut out", f"{move['cut_out']:.2f}", "0.00"])
    return markdown(["", "test", "epochs"], table)


def compare() -> str:
    """Every method of the comparison, by the worst drop."""
    table = read("compare.json")["table"]
    found = {name: r for name, r in table.items() if "reason" not in r}

    def used(r: dict[str, Any]) -> str:
        parts = [("inputs", "inputs"), ("labels", "labels"), ("sketch", "sketches")]
        return ", ".join(f"{name} {'+'.join(r[key])}" for name, key in parts if r[key]) or "-"

    rows = [
        [
            name, percent(list(r["test"].values())), f"{r['drop']:.1f}", used(r),
            f"{r['samples'] / 1000:.0f}k",
        ]
        for name, r in sorted(found.items(), key=lambda item: item[1]["drop"])
    ]  # fmt: skip
    return markdown(["", "test", "worst drop", "of the training data", "samples"], rows)


STREAMS = {
    "permuted_10": "Permuted MNIST, 10 tasks, two layers of 100, 5 epochs a task",
    "permuted_20": "Permuted MNIST, 20 tasks, two layers of 100, 1 epoch; geodesic uses labels",
    "mnist_fashion": "MNIST, then Fashion-MNIST, one 10-way head, two layers of 400, 8 epochs",
    "split_domain": "Split MNIST, domain-incremental, two layers of 400, 5 epochs",
    "split_class": "Split MNIST, class-incremental, two layers of 400, 5 epochs",
}


def steps() -> str:
    """Costs of steps, metrics and programs, as multiples of what they are compared with."""
    rows = {name: row for name, row in read("steps.json").items() if isinstance(row, dict)}
    table = []
    for name, row in rows.items():
        kind, _, case = name.partition(" ")
        if kind == "step":
            what = f"step in a Kronecker sketch, {case}, {row['weights']:,} weights"
            table.append([what, f"training step, batch {row['batch']}", f"{row['ratio']:.2f}"])
        elif kind == "gram":
            what = f"layerwise Gram matrix, {case} inputs"
            table.append([what, "building J and J J'", f"1/{row['ratio']:.0f}"])
        elif kind == "product":
            other = "the faster of curvlinops' GGN and torch.func"
            table.append([f"exact product, {case}", other, f"{row['ratio']:.2f}"])
        elif kind == "kfac":
            table += kfac(case, row)
        elif kind == "program":
            what = f"verified program, {row['variables']} variables, {row['rows']} rows"
            table.append([what, "clarabel alone", f"{row['ratio']:.2f}"])
    return markdown(["", "compared with", "time"], table)


# Parts of a comparison with KFAC. Both sides multiply once: factors are made when first needed.
KFAC = {
    "measuring": "measuring and one product",
    "decomposed": "the same and the decompositions of a first step",
    "whole product": "product before any step",
    "product": "product with what matters to steps",
}


def kfac(case: str, row: dict[str, Any]) -> list[list[str]]:
    """Rows that compare the Kronecker metric of a network with curvlinops' KFAC."""
    return [
        [f"Kronecker metric, {what}, {case}", "curvlinops' KFAC", f"{row[f'{part} ratio']:.2f}"]
        for part, what in KFAC.items()
    ]


# What a row of speed.json measured, what that is compared with, and the entry of the ratio.
SPEEDS = {
    "factor": (
        "decomposition of a {case}-wide factor, {kept} eigenvectors", "`eigh` in double precision",
        "ratio",
    ),
    "measuring": (
        "Kronecker metric, measuring, {case}, {weights:,} weights",
        "training pass, {images} images", "ratio",
    ),
    "step": (
        "step in a Kronecker sketch, {case}, {weights:,} weights", "training step, batch {batch}",
        "ratio",
    ),
    "bfloat16": (
        "gradient in bfloat16, {case}, {weights:,} weights", "in float32, {inputs} inputs", "ratio",
    ),
}  # fmt: skip


def speed() -> str:
    """Times of metrics, steps and processes, as multiples of what they are compared with."""
    table = []
    for name, row in read("speed.json").items():
        kind, _, case = name.partition(" ")
        if kind == "kfac":
            table += kfac(case, row)
        elif kind in SPEEDS:
            what, other, entry = SPEEDS[kind]
            named = {"case": case, **row}
            table.append([what.format(**named), other.format(**named), f"{row[entry]:.2f}"])
        elif kind == "processes":
            for part, gain in row["speed-up"].items():
                table.append([f"{part}, two processes", "one process", f"{1 / gain:.2f}"])
    return markdown(["", "compared with", "time"], table)


def sizes() -> str:
    """Cost of the check of two networks, and what it says of their merge, by size."""
    table = []
    rows = [(n, r) for n, r in read("speed.json").items() if n.startswith("check ")]
    for name, row in sorted(rows, key=lambda pair: pair[1]["weights"]):
        said, numbers = row["said"], re.findall(r"([\d.e+-]+) s ", row["time"]["assumed"])
        table.append([
            name.partition(" ")[2], f"{row['weights'] / 1e6:.1f}",
            f"{row['seconds']:.0f}", f"{row['peak'] / 1e9:.1f}",
            *(f"{said[part] / 1e9:.2f}"
              for part in ("weights", "walk", "metric", "measuring", "activations")),
            f"{sum(v for k, v in said.items() if 'disk' not in k) / 1e9:.1f}", *numbers,
        ])  # fmt: skip
    header = [
        "", "weights, 10⁶", "check, s", "check, GB", "both networks", "walk", "stored factors",
        "measuring", "activations", "merge, GB", "s per input of a step", "of a measurement",
        "decompositions, s",
    ]  # fmt: skip
    return markdown(header, table)


def estimates() -> str:
    """Estimated and measured times, in processor seconds of one thread."""
    rows = read("estimates.json")["table"]
    table = [
        [name, f"{row['said']:.1f}", f"{row['took']:.1f}", f"{row['ratio']:.2f}",
         f"{row['check']:.1f}" if "check" in row else "-"]
        for name, row in rows.items()
    ]  # fmt: skip
    return markdown(["", "estimated, s", "measured, s", "ratio", "check, s"], table)


def factor_forms() -> str:
    """Forms of Kronecker factors: memory, time of a step, functional change."""
    rows = read("factor_forms.json")["rows"]
    words = {
        "WHOLE": "as usual", "LAYERWISE": "some layers after the others",
        "HALF": "eigenvectors in bfloat16", "FILES": "these in files",
        "BLOCKS": "four diagonal blocks", "DIAGONAL": "diagonal", "EUCLIDEAN": "Euclidean",
    }  # fmt: skip
    table = []
    for form, name in words.items():
        row = rows.get(form)
        cells = ["-"] * 3
        if row is not None:
            cells = [
                f"{row['named'] / 1e6:.0f} MB", f"{(row['peak'] - row['vector']) / 1e6:.0f} MB",
                f"{row['step'] / rows['WHOLE']['step']:.1f}",
            ]  # fmt: skip
        same = "WHOLE" if form == "LAYERWISE" else form
        changes = [
            f"{rows[arch][share][same]:.2f}" for arch in ("mlp", "cnn") for share in rows[arch]
        ]
        table.append([name, *cells, *changes])
    header = ["factors", "named", "peak", "step / usual step"]
    header += [f"{arch}, {share}" for arch in ("mlp", "cnn") for share in rows[arch]]
    return markdown(header, table)


def limits() -> str:
    """Peak memory under --memory, one limit for each form of the metric."""
    rows = read("memory_limit.json")["limits"]
    table = []
    for row in rows.values():
        peak, note = f"{row['peak'] / 1e9:.3f} GB", "; ".join(row["chosen"]).partition(": ")[2]
        select = [f"{100 * value:.1f}" for value in row["select"].values()]
        if "limit" not in row:
            table.append(["none", "-", peak, "-", *select])
            continue
        kept = "yes" if row["kept"] else "no"
        table.append([f"{row['limit'] / 1e9:.3f} GB", note.partition(" (")[0], peak, kept, *select])
    return markdown(["--memory", "what the run chose", "peak", "kept", "a, %", "b, %"], table)


def continual() -> str:
    """Streams of tasks, those that have results."""
    parts = []
    for name, title in STREAMS.items():
        if not (ROOT / "benchmarks" / "results" / f"continual_{name}.json").exists():
            continue
        rows = stream_rows(name)
        table = [[row, *stream_row(r, name == "mnist_fashion")] for row, r in rows.items()]
        head = ["", "accuracy", "transfer", "forgetting", "MB", "examples", "passes", "s"]
        ratio = rows["geodesic"]["merge by expert"]
        timed = "" if ratio is None else f"\n\nMerge / training of the expert: {ratio:.2f}."
        parts.append(f"**{title}**\n\n{markdown(head, table)}{timed}")
    return "\n\n".join(parts)


def stream_rows(name: str) -> dict[str, Any]:
    """Return the rows of a stream, geomerge's own within its limit of memory."""
    rows: dict[str, Any] = read(f"continual_{name}.json")["table"]
    bounded = read("stream_memory.json")["table"].get(name.replace("_", " "), {})
    if "passes" not in bounded:
        return rows
    kept = {f"{k}, no limit" if k.startswith("geodesic, ") else k: v for k, v in rows.items()}
    return {**kept, "geodesic": bounded}


def stream_row(r: dict[str, Any], each: bool) -> list[str]:
    """Return a row's cells: the mean over tasks, with ``each`` both of them."""
    if "accuracy" not in r:
        return ["diverged"] + ["-"] * 6
    mean = f"{100 * r['accuracy']:.2f}"
    if each:
        mean += " (" + ", ".join(f"{100 * task:.1f}" for task in r["tasks"]) + ")"
    return [
        mean + (f", {r['diverged']} seed(s) diverged" if r["diverged"] else ""),
        share(r["backward_transfer"]),
        share(r["forgetting"]),
        f"{r['megabytes']:.1f}",
        f"{r['examples']:.0f}",
        f"{r['passes']:.1f}",
        f"{r['seconds']:.0f}",
    ]


def share(value: float | None) -> str:
    """Return a share in per cent, or a dash."""
    return "-" if value is None else f"{100 * value:.2f}"


def trained() -> str:
    """Walks compared with training of unlimited length: worst drop, in points."""
    results = read("merge.json")["table"]
    names = [
        "joint walk, balanced", "sketch walk, balanced", "two-teacher distillation, balanced",
        "joint training", "b fine-tuned on MNIST, best step",
        "b fine-tuned on MNIST, then the line back",
    ]  # fmt: skip
    table = []
    for name in names:
        cells = []
        for rows in results.values():
            if name not in rows:
                cells += ["-", "-"]
                continue
            mean = rows[name]["mean"]
            alone = [rows[f"expert {task}"]["mean"][k] for k, task in enumerate(EXPERTS)]
            cells += [percent(mean), f"{max(e - m for e, m in zip(alone, mean, strict=True)):.1f}"]
        table.append([name, *cells])
    return markdown(["", *(h for net in results for h in (net, "worst drop"))], table)


EXPERTS = ("a (MNIST)", "b (Fashion)")


def equal_samples() -> str:
    """Walks compared with training on as many samples."""
    table = read("compare.json")["table"]
    names = ("joint-walk", "sketch-walk", "distillation", "joint-training", "wise-ft", "ewc",
             "fine-tuning")  # fmt: skip
    rows = [[name, percent(list(table[name]["test"].values())), f"{table[name]['drop']:.1f}",
             f"{table[name]['samples'] / 1000:.0f}k"] for name in names]  # fmt: skip
    return markdown(["", "test", "worst drop", "samples"], rows)


def pruned() -> str:
    """Training with labels compared with the walk without labels: points above the walk."""
    rows = read("sparsify.json")["table"]
    levels = ["70 %", "90 %", "95 %", "98 %"]
    names = [
        "magnitude, then fine-tuning with labels", "iterative pruning and training with labels",
        "masked distillation, equal cost",
    ]  # fmt: skip
    table = [["walk, no labels", *(f"{rows[f'{level}: walk']['mean']:.2f}" for level in levels)]]
    for name in names:
        gaps = [rows[f"{v}: {name}"]["mean"] - rows[f"{v}: walk"]["mean"] for v in levels]
        table.append([name, *(f"{gap:+.2f}" for gap in gaps)])
    return markdown(["", *levels], table)


def streams() -> str:
    """Streams: geomerge, replay and training on everything at once, in percent."""
    names = ["geodesic", "replay-200", "replay-500", "joint"]
    table = []
    for name, title in STREAMS.items():
        if (ROOT / "benchmarks" / "results" / f"continual_{name}.json").exists():
            rows = stream_rows(name)
            table.append([title, *(f"{100 * rows[k]['accuracy']:.2f}" for k in names)])
    return markdown(["", *names], table)


def convolutions() -> str:
    """What a sketch walk loses on CIFAR-10, in points."""
    table = []
    for net, rows in read("cifar.json")["table"].items():
        for row in rows.values():
            drops = [100 * (e - m) for e, m in zip(row["experts"], row["balanced"], strict=True)]
            table.append([net.removeprefix("nets:"), percent([100 * e for e in row["experts"]]),
                          " / ".join(f"{drop:.1f}" for drop in drops)])  # fmt: skip
    return markdown(["network", "the two alone", "the merge is below them by"], table)


def headline() -> str:
    """One line per job: what was measured, and what stands closest to it."""
    merged, sparse = read("merge.json")["table"]["mlp"], read("sparsify.json")["table"]
    stream = read("continual_permuted_10.json")["table"]
    bounded = read("stream_memory.json")["table"]["permuted 10"]
    seeds = "" if len(bounded["seeds"]) > 1 else ", one seed"
    unknown = read("surrogate.json")["table"]["mlp"]["surrogate, max-min"]

    def two(name: str) -> str:
        return percent(merged[name]["mean"])

    experts = percent(
        [merged["expert a (MNIST)"]["mean"][0], merged["expert b (Fashion)"]["mean"][1]]
    )
    berts = read("fine_tunes_bert.json")["table"]
    table = [
        ["MNIST + Fashion-MNIST in one head, inputs of both, no labels",
         two("joint walk, balanced"), f"experts {experts}",
         f"straight line {two('straight line')}"],
        ["the same, inputs of MNIST and a sketch of the other network",
         two("sketch walk, balanced"), f"experts {experts}",
         f"fine-tuning {two('b fine-tuned on MNIST, best step')}"],
        ["the same, inputs of MNIST and nothing but the weights of the other network",
         percent(unknown["mean"]), f"experts {experts}",
         f"paper preset {two('paper preset, max-min')}"],
        ["LeNet-300-100 at 98 % zeros, no labels", f"{sparse['98 %: walk']['mean']:.2f}",
         f"dense {sparse['dense']['mean']:.2f}",
         f"one-shot magnitude {sparse['98 %: one-shot magnitude']['mean']:.2f}"],
        ["three BERTs fine-tuned from one base, sketches and no data: share of their accuracies "
         "kept, %",
         f"{100 * berts['Kronecker mean (sketches)']['kept']:.1f}", "100.0 (three networks)",
         f"task arithmetic {100 * berts['task arithmetic']['kept']:.1f}, "
         f"TIES {100 * berts['TIES']['kept']:.1f}"],
        ["ten permuted MNIST tasks, no example kept "
         f"({bounded['megabytes']:.1f} MB of sketches and moments{seeds})",
         f"{100 * bounded['accuracy']:.2f}",
         f"joint training {100 * stream['joint']['accuracy']:.2f}",
         f"EWC {100 * stream['ewc']['accuracy']:.2f}, replay of 500 "
         f"{100 * stream['replay-500']['accuracy']:.2f}"],
    ]  # fmt: skip
    return markdown(["", "geomerge", "upper bound", "usual alternative"], table)


def stream_memory() -> str:
    """Streams at the default memory."""
    table = []
    for name, row in read("stream_memory.json")["table"].items():
        mean = f"{100 * row['accuracy']:.2f}"
        if len(row["tasks"]) == 2:
            mean += " (" + ", ".join(f"{100 * task:.1f}" for task in row["tasks"]) + ")"
        ratio, joint, last = (
            row.get(key) for key in ("merge by expert", "joint", "last merge by tenth")
        )
        table.append([name, mean, str(len(row["seeds"])), f"{row['megabytes']:.2f}",
                      "-" if joint is None else f"{100 * joint:.2f}",
                      "-" if ratio is None else f"{ratio:.2f}",
                      "-" if last is None else f"{last:.2f}"])  # fmt: skip
    header = ["stream", "accuracy", "seeds", "MB", "joint", "merge / expert", "last / tenth merge"]
    return markdown(header, table)


def stream_cifar() -> str:
    """Split CIFAR-10 from scratch, each stream with its rows and orders of classes."""
    parts = []
    for name, found in read("stream_cifar.json")["table"].items():
        table = []
        for row, values in sorted(found["rows"].items(), key=lambda item: -item[1]["accuracy"]):
            true = values["true"]
            ratio = values["merge by expert"] if row.startswith("geodesic") else None
            table.append([
                row, f"{100 * values['accuracy']:.1f}",
                "-" if true is None else f"{100 * true:.1f}",
                f"{values['megabytes']:.2f}", f"{values['examples']:.0f}",
                "-" if ratio is None else f"{ratio:.2f}", str(len(values["seeds"])),
            ])  # fmt: skip
        orders = "; ".join(
            f"seed {seed}: " + ", ".join(part.removeprefix("classes ") for part in order)
            for seed, order in found["orders"].items()
        )
        epochs = f"{found['epochs']} epochs"
        header = ["", "accuracy", "true", "MB", "examples", "merge / expert", "seeds"]
        parts.append(
            f"**Split CIFAR-10, {name}, {epochs}**\n\n{markdown(header, table)}\n\n"
            f"Order of classes, {orders}."
        )
    return "\n\n".join(parts)


def stream_trunk() -> str:
    """Split CIFAR-10 on frozen trunks."""
    found = read("stream_trunk.json")
    table = [
        [trunk, row, f"{100 * values['accuracy']:.1f}", f"{values['megabytes']:.2f}",
         str(len(values["seeds"]))]
        for trunk, rows in found["table"].items()
        for row, values in rows.items()
    ]  # fmt: skip
    return markdown(["trunk", "", "accuracy", "MB", "seeds"], table)


TABLES: dict[str, Callable[[], str]] = {
    "merge": merge, "surrogate": surrogate, "resnet20": resnet20, "vit cifar": vit_cifar,
    "vgg11 shares": vgg11_shares, "vgg11 halves": vgg11_halves, "heads": heads,
    "three": three, "cifar": cifar, "fine tunes": fine_tunes,
    "merge time": merge_time, "six tasks": six_tasks, "three image tasks": three_image_tasks,
    "language models": language_models,
    "sparsify": sparsify, "sparsify few": sparsify_few, "sparsify vgg": sparsify_vgg,
    "continual": continual, "stream memory": stream_memory, "stream cifar": stream_cifar,
    "stream trunk": stream_trunk,
    "compare": compare, "steps": steps, "estimates": estimates, "limits": limits,
    "factor forms": factor_forms,
}  # fmt: skip


# The tables of each page.
PAGES = {
    "README.md": {"headline": headline},
    "docs/results.md": TABLES,
    "docs/scale.md": {"speed": speed, "sizes": sizes, "bert base": bert_base,
        "vit": vit, "sharded": sharded,
    },
    "docs/choosing.md": {
        "trained": trained, "equal samples": equal_samples, "pruned": pruned,
        "streams": streams, "convolutions": convolutions,
    },
}  # fmt: skip


def rendered(page: str, text: str) -> str:
    """Return a page's text with its tables as the results have them."""
    for name, table in PAGES[page].items():
        begin, end = f"<!-- table {name}: make tables -->", f"<!-- end of table {name} -->"
        pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
        if pattern.search(text) is None:
            raise SystemExit(f"{page} has no markers for the table {name}")
        whole = f"{begin}\n{table()}\n{end}"
        text = pattern.sub(lambda _, whole=whole: whole, text)
    return text


if __name__ == "__main__":
    for page in PAGES:
        file = ROOT / page
        file.write_text(rendered(page, file.read_text()))
