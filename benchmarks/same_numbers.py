"""Comparison of the command line's numbers with earlier ones, to the bit, after refactorings.

    python benchmarks/same_numbers.py --record build/before.json
    python benchmarks/same_numbers.py --check build/before.json
    python benchmarks/same_numbers.py --check build/before.json --only sparsify

Small networks are trained on scikit-learn's digits, and every command that computes is run on
them. Of each case it records SHA-256 of the tensors that were written, of networks taken off the
path and of the steps, and the numbers of the report; no times, paths, commands or versions. Bits
are those of one machine and its versions: record and check on the same one. It computes for three
minutes.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, chdir, redirect_stderr, redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias
from unittest.mock import patch

os.environ["OMP_NUM_THREADS"] = "1"  # sums in another order have other bits
sys.path.insert(0, str(Path(__file__).parents[1]))  # this checkout's, whatever is installed

import matplotlib.figure
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from geomerge.cli.app import main as command_line

Values: TypeAlias = dict[str, str | float | bool | None]
Case: TypeAlias = Callable[[], Values]

MLP = f"{Path(__file__).stem}:mlp"  # as --arch names it
_FEW = 40  # numbers of a report's section that are recorded one by one
# Parts of a report that are no results: options, which may be renamed, machines, times.
_NO_RESULTS = {
    "recipe", "options", "settings", "environment", "speed_up", "seconds", "expert_seconds",
    "merge_seconds",
}  # fmt: skip


def mlp() -> nn.Module:
    """Return 64-20-16-10, in which units can be matched and removed."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 20), nn.ReLU(), nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 10)
    )


def convolutions() -> nn.Module:
    """Return two convolutions with BatchNorm, and a linear layer."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU(),
        nn.Conv2d(6, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Flatten(), nn.Linear(32, 10),
    )  # fmt: skip


def unseen() -> AbstractContextManager[Any]:
    """Draw no pictures: they take as long as the numbers."""
    return patch.object(matplotlib.figure.Figure, "savefig", lambda *_, **__: None)


def geomerge(*words: str) -> str:
    """Run a command in this process and return what it printed."""
    code: Any = 0
    with (
        redirect_stdout(io.StringIO()) as out,
        redirect_stderr(io.StringIO()) as err,
        patch.object(sys, "argv", ["geomerge", *words]),
    ):
        try:
            command_line()
        except SystemExit as ended:
            code = ended.code
    if code:
        raise RuntimeError(f"geomerge {' '.join(words)}: {err.getvalue() or out.getvalue()}")
    return out.getvalue()


def digest(tensors: dict[str, Tensor]) -> str:
    """Return SHA-256 of names, types, shapes and bits."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().contiguous()
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def file_digest(file: Path) -> str:
    if file.suffix == ".safetensors":
        return digest(load_file(file))
    return digest(dict(_tensors(torch.load(file, weights_only=True), "")))


def _tensors(found: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(found, Tensor):
        yield name, found
    elif isinstance(found, dict):
        for key, value in found.items():
            yield from _tensors(value, f"{name}/{key}")


def numbers(found: Any, name: str = "") -> Iterator[tuple[str, float | bool | None]]:
    """Yield what is no text, by its place."""
    if isinstance(found, dict):
        for key, value in found.items():
            if key not in _NO_RESULTS:
                yield from numbers(value, f"{name}/{key}".strip("/"))
    elif isinstance(found, list):
        for k, value in enumerate(found):
            own = value.get("name", k) if isinstance(value, dict) else k
            yield from numbers(value, f"{name}/{own}")
    elif not isinstance(found, str):
        yield name, found


def sections(found: dict[str, Any], prefix: str = "", depth: int = 2) -> Values:
    """Return a report's numbers; of long sections what they hash to."""
    values: Values = {}
    for key, value in found.items():
        own, name = list(numbers(value, f"{prefix}{key}")), f"{prefix}{key}"
        if key in _NO_RESULTS or not own:
            continue
        if len(own) <= _FEW:
            values |= dict(own)
        elif depth > 1 and (parts := _named(value)):
            values |= sections(parts, f"{name}/", depth - 1)
        else:
            text = json.dumps(sorted(own, key=lambda item: item[0]))
            values[name] = hashlib.sha256(text.encode()).hexdigest()
    return values


def _named(value: Any) -> dict[str, Any] | None:
    """Return the parts of a section that have names."""
    if isinstance(value, dict):
        return value
    named = all(isinstance(part, dict) and "name" in part for part in value)
    return {part["name"]: part for part in value} if named else None


def run_values(run: Path) -> Values:
    """Return what is to be the same of a finished run."""
    values: Values = {}
    inner: dict[str, list[str]] = {}  # networks of a path, whatever their files are called
    for file in sorted(run.rglob("*")):
        if file.suffix in (".safetensors", ".pt"):
            place = file.parent.relative_to(run).as_posix()
            if (file.parent / "index.json").is_file():
                inner.setdefault(place, []).append(file_digest(file))
            else:
                values[file.relative_to(run).as_posix()] = file_digest(file)
        elif file.name == "steps.jsonl":
            steps = [list(numbers(json.loads(line))) for line in file.read_text().splitlines()]
            name = file.relative_to(run).as_posix()
            values[name] = hashlib.sha256(json.dumps(steps).encode()).hexdigest()
    for place, digests in inner.items():
        values[place] = hashlib.sha256(" ".join(sorted(digests)).encode()).hexdigest()
    if (run / "path").is_dir():
        for t in ("0", "0.3", "0.5", "0.8", "1"):
            geomerge("path", str(run), "--at", t, "--out", "taken.safetensors")
            values[f"path at {t}"] = file_digest(Path("taken.safetensors"))
            Path("taken.safetensors").unlink()
    return {**values, **sections(json.loads((run / "report.json").read_text()), "report/")}


def run(command: str, *words: str) -> Case:
    """Return a case: a command that leaves a run."""

    def case() -> Values:
        with TemporaryDirectory(dir=".") as folder:
            out = Path(folder) / "run"
            geomerge(command, *words, "--out", str(out))
            return run_values(out)

    return case


def printed(*words: str) -> Case:
    """Return a case: a command that prints JSON."""
    return lambda: sections(json.loads(geomerge(*words, "--json")))


def written(*words: str, out: str) -> Case:
    """Return a case: a command that writes a network or a sketch, left for other cases."""

    def case() -> Values:
        geomerge(*words, "--out", out)
        return {out: file_digest(Path(out))}

    return case


def verified(*words: str) -> Case:
    """Return a case: a merge and which claims of its certificate hold."""

    def case() -> Values:
        with TemporaryDirectory(dir=".") as folder:
            out = str(Path(folder) / "run")
            geomerge("merge", *words, "--out", out)
            found = json.loads(geomerge("verify", out, "--json"))
            return {claim["name"]: claim["holds"] for claim in found["claims"]}

    return case


def kept_zeros(a: str, b: str, *words: str) -> Case:
    """Return a case: two networks lose the same weights and are merged without them."""

    def case() -> Values:
        with TemporaryDirectory(dir=".") as folder:
            files = []
            for network in (a, b):
                file = Path(folder) / network
                whole = load_file(network)  # its sketch is of weights that are not zero
                tensors = {k: v for k, v in whole.items() if not k.startswith("geomerge.")}
                tensors["1.weight"][:, ::3] = 0
                save_file(tensors, file)
                files.append(str(file))
            tasks = ("--task", "a=digits", "--task", "b=digits-permuted", "--arch", MLP)
            geomerge("merge", *files, *tasks, *words, "--out", str(Path(folder) / "run"))
            return run_values(Path(folder) / "run")

    return case


def reconfigured(network: str, plan: str, *words: str) -> Case:
    """Return a case: units are removed by one run, and others by a plan that goes on from it."""

    def case() -> Values:
        with TemporaryDirectory(dir=".") as folder:
            first, then = Path(folder) / "first", Path(folder) / "then"
            file = Path(folder) / "plan.yaml"
            file.write_text(plan)
            geomerge("sparsify", network, "--remove", "1:5", *words, "--out", str(first))
            geomerge("reconfigure", str(first), "--plan", str(file), *words, "--out", str(then))
            return run_values(then)

    return case


def trained(name: str, task: str, factory: str, seed: int, *words: str) -> Case:
    arch = f"{Path(__file__).stem}:{factory}"
    return written(
        "train", "--manifold", task, "--arch", arch, "--seed", str(seed), *words,
        out=f"{name}.safetensors",
    )  # fmt: skip


# Networks that the other cases need.
SOON = ("--epochs", "3", "--learning-rate", "0.03")  # legs between such networks are short
NETWORKS = {
    "a": trained("a", "digits", "mlp", 0, "--epochs", "20"),
    "b": trained("b", "digits-permuted", "mlp", 1, "--epochs", "20"),
    "near-a": trained("near-a", "digits", "mlp", 0, *SOON),
    "near-b": trained("near-b", "digits-permuted", "mlp", 0, *SOON),
    "near-c": trained("near-c", "digits@0-9", "mlp", 0, "--epochs", "4", "--no-sketch"),
    "conv-base": trained("conv-base", "digits", "convolutions", 3, "--epochs", "0", "--no-sketch"),
    "conv-a": trained("conv-a", "digits", "convolutions", 3, "--epochs", "2"),
    "conv-b": trained("conv-b", "digits-permuted", "convolutions", 3, "--epochs", "2"),
}
AB = ("a.safetensors", "b.safetensors")
NEAR = ("near-a.safetensors", "near-b.safetensors")
THREE = (*NEAR, "near-c.safetensors")
CONV = ("conv-a.safetensors", "conv-b.safetensors")
BOTH = ("--manifold", "digits", "--manifold", "digits-permuted")
ALL = ("--manifold", "a=digits", "--manifold", "b=digits-permuted", "--manifold", "c=digits@0-9")
QUICK = ("--steps", "12", "--points", "8")
ONE = ("--damping", "1e-4")
PRESETS = {
    "joint": BOTH,
    "sketch": BOTH,
    "paper": ("--manifold", "digits", "--task", "b=digits-permuted"),
}
METRICS = ("kronecker", "exact", "gram", "euclidean")


def merges() -> dict[str, Case]:
    found = {
        f"merge {preset} {metric}": run(
            "merge", *NEAR, *data, "--preset", preset, "--metric", metric, *QUICK, *ONE
        )
        for preset, data in PRESETS.items()
        for metric in METRICS
    }
    options: dict[str, Sequence[str]] = {
        "usual dampings": ("--manifold", "b=digits-permuted"),
        "unlabelled": ("--manifold", "b=digits-permuted", "--pick", "equal-drift", *ONE),
        "floor": (*BOTH, "--pick", "a>=0.8", "--seed", "1", *ONE),
        "head offset": (*BOTH, "--head", "offset", *ONE),
        "head separate": (*BOTH, "--head", "separate", *ONE),
        "learn damping": ("--manifold", "b=digits-permuted", "--learn", "damping"),
        "relax": (*BOTH, "--preset", "paper", "--relax", *ONE),
        "output logits": (*BOTH, "--output", "logits", *ONE),
        "output tempered": (*BOTH, "--output", "tempered", *ONE),
        "output softmax": (*BOTH, "--output", "softmax", *ONE),
        "learning rate": (*BOTH, "--learning-rate", "0.01", "--pt", *ONE),
        "memory": (*BOTH, "--memory", "2GB", *ONE),
        "normalisation": (*BOTH, "--normalisation", "digits=0.3/0.4", *ONE),
    }
    for name, words in options.items():
        found[f"merge {name}"] = run("merge", *NEAR, *words, *QUICK)
    short = (*QUICK, *ONE)
    found |= {
        "merge far": run("merge", *AB, *BOTH, *short),
        "merge budget": run("merge", *AB, *BOTH[2:], "--budget", "a=1e-4", *short),
        "merge budget of classes": run(
            "merge", *AB, *BOTH, "--preset", "sketch", "--budget", "b/*=1e-4", *short
        ),
        "merge align weights": run("merge", *AB, *BOTH, "--align", "weights", *short),
        "merge align activations": run("merge", *AB, *BOTH, "--align", "activations", *short),
        "merge arch": run("merge", *NEAR, *BOTH, "--arch", MLP, *short),
        "merge three joint": run("merge", *THREE, *ALL, *short),
        "merge three sketch": run("merge", *THREE, *ALL, "--preset", "sketch", *short),
        "merge three offset": run("merge", *THREE, *ALL, "--head", "offset", *short),
        "merge convolutions keep": run("merge", *CONV, *BOTH, "--bn", "keep", *short),
        "merge convolutions aligned": run("merge", *CONV, *BOTH, "--align", "activations", *short),
        "merge keep zeros": kept_zeros(*NEAR, *BOTH, "--keep-zeros", *short),
        "verify": verified(*NEAR, *BOTH, "--budget", "a=1e-3", *short),
    }
    return found


WALK = ("--steps", "60", "--stages", "5", "--inputs", "400", "--points", "8")
GOALS: dict[str, Sequence[str]] = {
    "sparsity": ("--sparsity", "0.8", "--pt", "--torch-prune"),
    "per layer": ("--sparsity", "0.7", "--per-layer"),
    "nm": ("--nm", "2:4"),
    "obd": ("--sparsity", "0.8", "--saliency", "obd", "--mix", "0"),
    "magnitude": ("--sparsity", "0.8", "--saliency", "magnitude", "--output", "hellinger"),
    "euclidean": ("--sparsity", "0.8", "--metric", "euclidean"),
    "pull": ("--sparsity", "0.6", "--walk", "pull"),
    "paths": ("--sparsity", "0.8", "--paths", "2", "--seed", "1"),
    "labels": ("--sparsity", "0.9", "--labels"),
    "greedy": ("--remove", "1:6", "--remove", "3:0.25", "--shrink"),
    "rates": ("--remove", "1:6", "--choose", "rates"),
    "rates within budget": ("--remove", "1:6", "--choose", "rates", "--budget", "0.5"),
    "units by magnitude": ("--remove", "1:1,3,5-8", "--choose", "magnitude"),
    "flops": ("--flops", "0.3", "--shrink"),
    "params": ("--params", "0.3"),
}
CONV_GOALS: dict[str, Sequence[str]] = {
    "sparsity": ("--sparsity", "0.7"),
    "greedy": ("--remove", "0:2", "--remove", "3:3", "--shrink"),
    "flops": ("--flops", "0.3", "--bn", "keep"),
}
PLAN = """\
- {name: smaller, remove: {'1': 3, '3': 0.25}}
- {name: back, restore: {'1': 6}}
- {name: other, remove: {'1': [2, 5-7]}, restore: {'3': 2}}
"""


def sparsifications() -> dict[str, Case]:
    a, conv = AB[0], CONV[0]
    return {
        **{f"sparsify {k}": run("sparsify", a, *words, *WALK) for k, words in GOALS.items()},
        **{
            f"sparsify convolutions {k}": run("sparsify", conv, *words, *WALK)
            for k, words in CONV_GOALS.items()
        },
        "reconfigure": reconfigured(a, PLAN, *WALK),
        "reconfigure rates": reconfigured(a, PLAN, "--choose", "rates", *WALK),
        "inspect": printed("inspect", a, "--manifold", "digits", "--inputs", "400"),
        "inspect convolutions": printed(
            "inspect", conv, "--manifold", "digits", "--inputs", "200", "--output", "hellinger"
        ),
    }


STREAM = ("--epochs", "2", "--batch", "32", "--arch", "mlp-16")
ROWS = "geodesic,naive,mean,running-mean,ewc,si,lwf,gem,replay-50,joint"


def streams() -> dict[str, Case]:
    two = ("stream", "split-digits", "--experiences", "2", *STREAM, "--only", "geodesic")
    return {
        "stream permuted": run(
            "stream", "permuted-digits", "--experiences", "3", *STREAM, "--only", ROWS,
            "--memory-examples", "50",
        ),
        "stream split": run(
            "stream", "split-digits", *STREAM, "--only", "geodesic,naive,replay-50",
            "--memory-examples", "50",
        ),
        "stream by task": run(*two, "--scenario", "task", "--examples", "20"),
        "stream by domain": run(*two, "--scenario", "domain", "--budget", "0.05"),
        "stream with labels": run(*two, "--labels", "--damping", "0.3", "--walk-rate", "0.02"),
        "stream euclidean": run(*two, "--metric", "euclidean"),
        "stream in little memory": run(*two, "--memory-limit", "240KB"),
    }  # fmt: skip


def others() -> dict[str, Case]:
    samples = ("--budget", "2000", "--steps", "8")
    return {
        "compare": run("compare", *AB, *BOTH, *samples),
        "compare offset": run(
            "compare", *AB, *BOTH, *samples, "--head", "offset", "--skip", "zipit,fisher"
        ),
        "compare convolutions": run(
            "compare", *CONV, *BOTH, *samples, "--base", "conv-base.safetensors"
        ),
        "sketch": written(
            "sketch", AB[0], "--manifold", "digits", "--inputs", "300", "--output", "logits",
            out="sketch.safetensors",
        ),
        "evaluate": printed("evaluate", AB[0], *BOTH),
        "evaluate select": printed(
            "evaluate", CONV[1], "--manifold", "digits-permuted", "--split", "select"
        ),
    }  # fmt: skip


def cases() -> dict[str, Case]:
    """Return all cases by name; the networks come first."""
    networks = {f"train {name}": case for name, case in NETWORKS.items()}
    return {**networks, **merges(), **sparsifications(), **others(), **streams()}


def measure(only: str) -> dict[str, Values]:
    """Run the cases whose names begin so, and the networks for them; report on each."""
    found: dict[str, Values] = {}
    torch.set_num_threads(1)
    with TemporaryDirectory() as folder, chdir(folder), unseen():
        for name, case in cases().items():
            wanted = name.startswith(only)
            if not wanted and not name.startswith("train "):
                continue
            began = time.perf_counter()
            try:
                values = case()
            except Exception as error:
                values = {"failed": f"{type(error).__name__}: {error}"}
            if wanted:
                found[name] = values
                took = time.perf_counter() - began
                print(f"{took:6.1f} s  {name}  {values.get('failed', '')}", flush=True)
    return found


def differences(before: Values, now: Values) -> list[str]:
    """Return a line for every value that is not the same."""
    return [
        f"    {name}: {before.get(name, 'nothing')} -> {now.get(name, 'nothing')}"
        for name in sorted({*before, *now})
        if name not in before or name not in now or repr(before[name]) != repr(now[name])
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--record", type=Path, metavar="FILE", help="write what is found")
    which.add_argument("--check", type=Path, metavar="FILE", help="compare with what was written")
    parser.add_argument("--only", default="", metavar="PREFIX", help="cases that begin so")
    arguments = parser.parse_args()
    found = measure(arguments.only)
    print(f"{len(found)} cases; this process computed for {time.process_time():.0f} s")
    failed = [name for name, values in found.items() if "failed" in values]
    if arguments.record:
        arguments.record.write_text(json.dumps(found, indent=1) + "\n")
        sys.exit(f"failed: {', '.join(failed)}" if failed else 0)
    before = json.loads(arguments.check.read_text())
    before = {name: values for name, values in before.items() if name.startswith(arguments.only)}
    differ = 0
    for name in {**before, **found}:
        lines = differences(before.get(name, {}), found.get(name, {}))
        if lines:
            differ += 1
            print("\n".join([f"{name} differs:", *lines]))
    print(f"{differ} of {len(before)} cases differ")
    sys.exit(1 if differ else 0)


if __name__ == "__main__":
    main()
