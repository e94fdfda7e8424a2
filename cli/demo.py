"""``geomerge demo``: the whole way in a minute, offline."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from geomerge.cli.console import percent, progress_bar
from geomerge.cli.merge import show_report

__all__ = ["demo"]


def demo(
    out: Annotated[
        Path | None, typer.Option(help="Folder of the demonstration; default runs/demo-SEED.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of everything drawn.")] = 0,
) -> None:
    """Train two networks on scikit-learn's digits, straight and permuted, and merge them."""
    from geomerge.errors import RunError
    from geomerge.merging import MergeOptions
    from geomerge.runs import run_merge
    from geomerge.tasks import load_task
    from geomerge.training import train_checkpoint

    out = out or Path(f"runs/demo-{seed}")
    if (out / "merge").exists():
        raise RunError(f"{out} holds a demonstration already; choose another --out or remove it")
    tasks = {"a": "digits", "b": "digits-permuted"}
    for k, (name, task_name) in enumerate(tasks.items()):
        found = train_checkpoint(
            out / f"{name}.pt", "lenet-300-100", load_task(task_name), epochs=30,
            learning_rate=0.02, seed=2 * seed + k,
        )  # fmt: skip
        print(f"{name}: lenet-300-100 trained on {task_name}, {percent(found['test'])} % on test")
    with progress_bar(quiet=False) as show:
        options = MergeOptions(manifold=("digits",), seed=seed)
        folder, report, _ = run_merge(
            out / "a.pt", out / "b.pt", options, out=out / "merge", on_progress=show
        )
    show_report(report)
    for side, task_name in tasks.items():
        print(f"{task_name:>16}  {_sparkline(report['curve'], side)}")
    print(f"{'':>16}  a {'path':-^{max(len(report['curve']) - 4, 4)}} b")
    print(f"picture: {folder / 'curves.png'}; the network: {folder / 'merged.safetensors'}")


def _sparkline(curve: list[dict[str, Any]], side: str) -> str:
    blocks = " ▁▂▃▄▅▆▇█"
    return "".join(blocks[round((len(blocks) - 1) * point[side])] for point in curve)
