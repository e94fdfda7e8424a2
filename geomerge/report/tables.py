"""Tables of a comparison and of a stream, as cells and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from geomerge.evaluation.measures import cell

__all__ = ["DATA_MEANING", "compare_markdown", "compare_table", "stream_markdown", "stream_table"]

DATA_MEANING = (
    "data: x inputs, y labels, s the sketch of a network, of a's or b's task; samples: inputs "
    "passed through a network to make the row; min: the worse on test; drop: the worst drop "
    "below the network of a task, in points, or the worst rise of a perplexity above it, in "
    "percent; sel.: selection split; s: seconds"
)
_HEADINGS = (
    "method", "acc", "BWT", "forget", "MB", "inputs", "labels", "passes", "train", "merge",
)  # fmt: skip


def compare_table(report: dict[str, Any]) -> tuple[tuple[str, ...], list[list[str]]]:
    """Return the headings and cells of the table; methods without a result are left out.

    Args:
        report: Content of ``report.json``.
    """
    headings = (
        "method", "test a", "test b", "min", "drop", "sel. a", "sel. b", "data", "s", "samples",
        "chosen",
    )  # fmt: skip
    measures = {s: report["networks"][s].get("measure", "accuracy") for s in "ab"}
    rows = []
    for row in report["rows"]:
        if row["reason"] is not None:
            continue
        rows.append([
            row["name"],
            *(cell(row["test"][side], measures[side]) for side in "ab"),
            cell(row["smallest"], measures["a"]),
            f"{100 * row['worst_drop']:.2f}",
            *(cell(row["select"][side], measures[side]) for side in "ab"),
            _data(row["data"]),
            f"{row['seconds']:.1f}",
            f"{row['samples'] / 1000:.0f}k" if row["samples"] else "-",
            ", ".join(f"{name} {value:g}" for name, value in row["chosen"].items()),
        ])  # fmt: skip
    return headings, rows


def _data(data: dict[str, list[str]]) -> str:
    letters = {"inputs": "x", "labels": "y", "sketches": "s"}
    parts = [f"{letters[what]}:{''.join(names)}" for what, names in data.items() if names]
    return " ".join(parts) or "-"


def compare_markdown(report: dict[str, Any]) -> str:
    """Return ``table.md`` of a comparison.

    Args:
        report: Content of ``report.json``.
    """
    headings, rows = compare_table(report)
    a, b = (report["networks"][side] for side in "ab")
    lines = [
        f"# {a['file']} ({a['task']}) and {b['file']} ({b['task']}), {report['head']} head",
        "",
        *_markdown_table(headings, rows),
        "",
        f"Accuracies in percent. Points were picked by {report['pick']} on the selection splits, "
        f"trained rows had {report['budget']:,} samples. {DATA_MEANING[0].upper()}"
        f"{DATA_MEANING[1:]}.",
        "",
        *[f"- {row['name']}: {row['about']}" for row in report["rows"] if row["reason"] is None],
        *[f"- {row['name']}: {row['reason']}" for row in report["rows"] if row["reason"]],
        *[f"- note: {note}" for note in report["notes"]],
    ]
    return "\n".join(lines) + "\n"


def stream_table(report: dict[str, Any]) -> tuple[tuple[str, ...], list[list[str]]]:
    """Return the headings and cells of the table.

    Args:
        report: Content of ``report.json``.
    """
    rows = []
    for row in report["rows"]:
        kept, seconds = row["kept"], row["seconds"]
        rows.append([
            row["name"] + (" (at chance)" if row.get("hardly_trained") else ""),
            f"{100 * row['accuracy']:.2f}",
            _points(row["backward_transfer"]),
            _points(row["forgetting"]),
            f"{kept['megabytes']:.2f}",
            str(kept["examples"]),
            str(kept["labels"]),
            f"{row['passes']:.1f}",
            f"{seconds['training']:.0f}",
            f"{seconds['merging']:.0f}",
        ])  # fmt: skip
    return _HEADINGS, rows


def stream_markdown(report: dict[str, Any]) -> str:
    """Return ``table.md`` of a stream.

    Args:
        report: Content of ``report.json``.
    """
    stream, network = report["stream"], report["network"]
    headings, rows = stream_table(report)
    lines = [
        f"# {stream['name']}: {len(stream['experiences'])} experiences, seed {stream['seed']}",
        "",
        f"{network['architecture']} with {network['parameters']:,} parameters; "
        f"{stream['meaning']}.",
        "",
        *_markdown_table(headings, rows),
        "",
        "acc, BWT and forget are accuracies on the test splits, in percent: average over all tasks "
        "after the last, mean change of each task since it was learned (backward transfer), mean "
        "loss since it was best. MB, inputs and labels: memory kept between experiences beside the "
        "network itself, examples in it, and labels that it was made from. passes: examples passed "
        "forwards and backwards, in epochs; train and merge: seconds.",
        "",
        *[f"- {row['name']}: {row['about']}" for row in report["rows"]],
        *[f"- {name} is not in the table: {why}" for name, why in report["diverged"].items()],
        *[
            f"- {row['name']} hardly trained: its accuracy is at chance, and bounds nothing"
            for row in report["rows"]
            if row.get("hardly_trained")
        ],
    ]
    return "\n".join(lines) + "\n"


def _points(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"


def _markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table whose first column names the rows."""
    lines = [headings, ["---", *["---:"] * (len(headings) - 1)], *rows]
    return ["| " + " | ".join(cells) + " |" for cells in lines]
