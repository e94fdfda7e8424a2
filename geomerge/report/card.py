"""Model card of a finished run: ``README.md`` as the Hugging Face Hub reads it.

YAML between two lines of dashes holds the fields that the Hub searches, Markdown below it the text.
The fields are those of https://huggingface.co/docs/hub/model-cards.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from geomerge.data import Task
from geomerge.evaluation.measures import cell, perplexity_of, unit
from geomerge.io.files import file_sha256, write_bytes

__all__ = ["write_merge_card", "write_reconfigure_card", "write_sparsify_card"]

CARD = "README.md"
_TEMPLATES = Path(__file__).parent / "templates"
_HUB = {  # names of data sets on the Hub
    "mnist": "ylecun/mnist",
    "fashion-mnist": "zalando-datasets/fashion_mnist",
    "cifar10": "uoft-cs/cifar10",
}
_KINDS = {1: "tabular-classification", 3: "image-classification"}  # by number of dimensions


def write_merge_card(
    folder: Path, report: Mapping[str, Any], tasks: Mapping[str, Task | None]
) -> None:
    """Write the card of a merge.

    Args:
        folder: Folder of the run, with ``merged.safetensors``.
        report: Content of ``report.json``; the certificate is not needed.
        tasks: Task of each network, None for one without.
    """
    known = {name: task for name, task in tasks.items() if task is not None}
    names = _distinct({name: short(task.name) for name, task in known.items()})
    networks = report["networks"]
    crossover = next(row for row in report["results"] if row["name"] == "crossover")
    title = "Merge of " + " and ".join(network["file"] for network in networks.values())
    results = [(task, names[name], crossover["test"][name]) for name, task in known.items()]
    _write(
        folder,
        "merge.md.j2",
        _metadata(title, ["model-merging"], results),
        title=title,
        report=report,
        tasks=known,
        unit=unit(task.measure for task in known.values()),
        names={name: names.get(name) for name in tasks},
        rows=[(names[name], task, networks[name]["outputs"]) for name, task in known.items()],
        walks=sum(len(stage["candidates"]) for stage in report["stages"]),
        notes=_notes(report, known.values()),
        files=[
            *((network["file"], network["sha256"]) for network in networks.values()),
            _digest(folder, "merged.safetensors"),
        ],
    )


def write_sparsify_card(
    folder: Path, report: Mapping[str, Any], tasks: Mapping[str, Task | None]
) -> None:
    """Write the card of a sparsification.

    Args:
        folder: Folder of the run, with ``sparse.safetensors``.
        report: Content of ``report.json``.
        tasks: Task that the function was kept on, by any name.
    """
    last = report["results"][-1]
    result = _Result(
        title=f"{report['network']['file']}, {100 * last['zeros']:.1f} % of its weights zero",
        tags=["pruning", "sparsity"],
        last=last,
        test=last["test"],
        networks=["sparse"],
    )
    _write_sparse(folder, "sparsify.md.j2", report, tasks, result)


def write_reconfigure_card(
    folder: Path, report: Mapping[str, Any], tasks: Mapping[str, Task | None]
) -> None:
    """Write the card of a reconfiguration.

    Args:
        folder: Folder of the run, with a network for each configuration.
        report: Content of ``report.json``.
        tasks: Task that the function was kept on, by any name.
    """
    last = report["configurations"][-1]
    result = _Result(
        title=f"{report['network']['file']}, {last['name']}",
        tags=["pruning"],
        last=last,
        test=last["result"]["test"],
        networks=[configuration["name"] for configuration in report["configurations"]],
    )
    _write_sparse(folder, "reconfigure.md.j2", report, tasks, result)


def short(name: str) -> str:
    """Return a task's name without the folders of its data."""
    return Path(name).name or name


class _Result(NamedTuple):
    """Result of a sparsification or a reconfiguration.

    Attributes:
        title: Title of the card.
        tags: Tags of the card.
        last: Row of the report on the last network.
        test: Accuracy of that network on the test split, in [0, 1].
        networks: Names of the network files, without suffix.
    """

    title: str
    tags: list[str]
    last: Mapping[str, Any]
    test: float
    networks: Sequence[str]


def _write_sparse(
    folder: Path,
    template: str,
    report: Mapping[str, Any],
    tasks: Mapping[str, Task | None],
    result: _Result,
) -> None:
    (task,) = tasks.values()
    assert task is not None, "no network is sparsified without its task"
    name, network = short(task.name), report["network"]
    _write(
        folder,
        template,
        _metadata(result.title, result.tags, [(task, name, result.test)]),
        title=result.title,
        report=report,
        last=result.last,
        name=name,
        rows=[(name, task, None)],
        notes=_notes(report, [task]),
        files=[
            (network["file"], network["sha256"]),
            *(_digest(folder, f"{stem}.safetensors") for stem in result.networks),
        ],
    )


def _metadata(
    title: str, tags: list[str], results: Sequence[tuple[Task, str, float]]
) -> dict[str, Any]:
    """Return the YAML fields above the text; no licence is stated, because it is unknown.

    Args:
        title: Name of the network.
        tags: Tags of the card.
        results: Tasks with their names and the scores on their test splits, in [0, 1].
    """
    measured = [
        {
            "task": {"type": _KINDS.get(len(task.input_shape), "other")},
            "dataset": {"name": name, "type": _HUB.get(name, name), "split": "test"},
            "metrics": [_metric(task, value)],
        }
        for task, name, value in results
    ]
    kinds = {_KINDS.get(len(task.input_shape)) for task, _, _ in results}
    kind = kinds.pop() if len(kinds) == 1 else None
    whole = [short(task.name).partition("@")[0].removeprefix("rotated-") for task, _, _ in results]
    hub = {_HUB[name] for name in whole if name in _HUB}
    return {
        "library_name": "geomerge",
        **({"pipeline_tag": kind} if kind else {}),
        "tags": tags,
        **({"datasets": sorted(hub)} if hub else {}),
        "metrics": sorted({_metric(task, 1.0)["type"] for task, _, _ in results}) or ["accuracy"],
        **({"model-index": [{"name": title, "results": measured}]} if measured else {}),
    }


def _metric(task: Task, score: float) -> dict[str, Any]:
    if task.measure == "loss":
        return {"type": "perplexity", "value": perplexity_of(score), "name": "perplexity"}
    return {"type": "accuracy", "value": score, "name": "accuracy"}


def _distinct(names: dict[str, str]) -> dict[str, str]:
    """Return names of tasks, with the network's name where several networks share a task."""
    shared = {name for name in names.values() if list(names.values()).count(name) > 1}
    return {k: f"{name} ({k})" if name in shared else name for k, name in names.items()}


def _notes(report: Mapping[str, Any], tasks: Iterable[Task]) -> list[str]:
    """Return the report's notes with the names of tasks shortened."""
    notes = list(report["notes"])
    for task in tasks:
        notes = [note.replace(task.name, short(task.name)) for note in notes]
    return notes


def _digest(folder: Path, name: str) -> tuple[str, str]:
    return name, file_sha256(folder / name)


def _write(folder: Path, template: str, metadata: dict[str, Any], **content: Any) -> None:
    import yaml
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=False,  # Markdown; names from outside go through the filter "code"
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    filters = {"cell": cell, "code": _code, "percent": _percent, "short": short, "text": _text}
    environment.filters |= filters
    head = yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True)
    body = environment.get_template(template).render(**content)
    write_bytes(folder / CARD, f"---\n{head}---\n\n{body}".encode())


def _code(text: str) -> str:
    """Return text from outside as Markdown code without markup."""
    plain = " ".join(text.split()).replace("`", "'").replace("|", "\\|")
    return f"`{plain}`"


def _text(text: str) -> str:
    """Return text from outside as Markdown text without markup."""
    return re.sub(r"([\\`*_|<>\[\]])", r"\\\1", " ".join(text.split()))


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"
