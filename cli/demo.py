"""``geomerge demo``: training and merge of two small networks in a minute, offline."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from geomerge.cli.console import percent, watched
from geomerge.cli.merge import show_report
from geomerge.cli.train import watch_training

__all__ = ["demo"]

TASKS = {"a": "digits", "b": "digits-permuted"}
ARCHITECTURE = "lenet-300-100"


def demo(
    out: Annotated[
        Path | None,
        typer.Option(
            help="folder of the demonstration; default runs/demo-SEED", rich_help_panel="output"
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option(help="seed of both networks and of the merge", rich_help_panel="training")
    ] = 0,
) -> None:
    """Train and merge two small networks in a minute.

    The tasks are scikit-learn's digits, with original and with permuted pixels. Nothing is
    downloaded.
    """
    from geomerge.monitor import sparkline

    out = out or Path(f"runs/demo-{seed}")
    if (out / "merge" / "report.json").is_file():
        from geomerge.runs.folder import read_json

        report = read_json(out / "merge" / "report.json")
        print(f"{out} was finished before; nothing changed")
    else:
        report = _run(out, seed)
    show_report(report)
    for side, task in TASKS.items():
        print(f"{task:>16}  {sparkline([p['accuracy'][side] for p in report['curve']])}")
    print(f"{'':>16}  a {'path':-^{max(len(report['curve']) - 4, 4)}} b")
    merged = out / "merge"
    print(f"picture: {merged / 'curves.png'}; the network: {merged / 'merged.safetensors'}")


def _trained(file: Path, task: str, seed: int) -> bool:
    """Return whether an interrupted demonstration has written a network's file.

    Raises:
        RunError: If the file is from elsewhere.
    """
    from geomerge.errors import GeomergeError, RunError
    from geomerge.io.checkpoint import load_checkpoint

    if file.exists():
        with suppress(GeomergeError):
            meta = load_checkpoint(file).meta
            if meta.get("task") == task and meta.get("training", {}).get("seed") == seed:
                return True
        raise RunError(f"{file} exists, and is not from a demonstration; choose another `out`")
    return False


def _run(out: Path, seed: int) -> dict[str, Any]:
    from geomerge.data import load_task
    from geomerge.expert_options import DataOptions
    from geomerge.merging import MergeOptions
    from geomerge.runs import run_merge
    from geomerge.training import train_checkpoint

    for k, (name, task) in enumerate(TASKS.items()):
        if _trained(out / f"{name}.pt", task, 2 * seed + k):
            print(f"{name}: trained before, {out / name}.pt")
            continue
        number = 2 * seed + k
        with watched(log_json=False) as show:
            data = load_task(task)
            watch = show and watch_training(show, ARCHITECTURE, data, number, "cpu")
            found = train_checkpoint(
                out / f"{name}.pt", ARCHITECTURE, data, epochs=30, learning_rate=0.02,
                seed=number, on_step=watch,
            )  # fmt: skip
        print(f"{name}: {ARCHITECTURE} trained on {task}, {percent(found['test'])} % on test")
    with watched(log_json=False) as show:
        _, report, _ = run_merge(
            [out / "a.pt", out / "b.pt"],
            MergeOptions(seed=seed),
            DataOptions(manifold=(TASKS["a"],)),
            out=out / "merge",
            progress=show,
        )
    return report
