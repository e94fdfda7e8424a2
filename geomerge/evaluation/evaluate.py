"""Accuracies, or losses and perplexities, of a network on tasks, as ``geomerge evaluate`` tells."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from geomerge.data import Split, check_normalised, split_normalisations
from geomerge.errors import OptionError, did_you_mean
from geomerge.evaluation.measures import loss_of, perplexity_of
from geomerge.evaluation.plausibility import normalisation_doubt
from geomerge.expert import Expert
from geomerge.expert_options import ExpertOptions
from geomerge.io.checkpoint import Checkpoint
from geomerge.networks.architectures import recognise
from geomerge.networks.hugging_face import load_network
from geomerge.networks.network import Network

__all__ = ["MEASURED_SPLITS", "evaluate", "evaluate_file", "open_network"]

MEASURED_SPLITS = ("test", "select")


def evaluate(
    file: str | Path,
    tasks: Sequence[str],
    split: str = "test",
    options: ExpertOptions | None = None,
) -> dict[str, Any]:
    """Measure a file's network on tasks.

    Args:
        file: File of the network, or its model folder.
        tasks: Names of tasks.
        split: Split that is measured, one of :data:`MEASURED_SPLITS`.
        options: Architecture of the network, normalisation and place of the data.

    Returns:
        The file's digest, architecture and head, notes on assumptions, and for each task the number
        of examples, its measure and the accuracy in [0, 1], or of a language model the mean loss
        per token in nats, its perplexity and the number of tokens.

    Raises:
        GeomergeError: If the file, a task or an option cannot be used.
    """
    options = options or ExpertOptions()
    if split not in MEASURED_SPLITS:
        raise OptionError(f"unknown split {split!r}{did_you_mean(split, MEASURED_SPLITS)}")
    normalisations = split_normalisations(options.normalisation)
    check_normalised(normalisations, tasks, "measured")
    checkpoint = load_network(file, options.reading.files)
    expert = Expert.from_checkpoint(checkpoint, options.arch, sketch=False, device=options.device)
    rows: list[dict[str, Any]] = []
    doubts: list[str] = []
    for name in tasks:
        task = expert.load_task(
            name,
            normalisations.get(name),
            options.data_root,
            options.download,
            options.reading.examples,
        )
        doubt = normalisation_doubt(expert.with_task(task))
        doubts += [] if doubt is None else [doubt]
        rows.append(
            {
                "task": name,
                "split": split,
                "examples": len(getattr(task, split).labels),
                "measure": task.measure,
                **_measured(expert.score(split, task), getattr(task, split)),
            }
        )
    return {
        "file": Path(file).name,
        "sha256": checkpoint.digest,
        "architecture": expert.meta.get("architecture"),
        "recognised": recognise(checkpoint.weights),
        "head": expert.meta.get("head", {}).get("protocol", "shared"),
        "notes": [*expert.warnings, *expert.notes, *doubts],
        "tasks": rows,
    }


def _measured(score: float, split: Split) -> dict[str, float]:
    if split.measure == "accuracy":
        return {"accuracy": score}
    return {
        "loss": loss_of(score), "perplexity": perplexity_of(score), "tokens": split.predicted,
    }  # fmt: skip


def evaluate_file(
    file: str | Path, tasks: Sequence[str], *, split: str = "test", **data: Any
) -> dict[str, Any]:
    """Measure a file's network on tasks, as version 0.1 called :func:`evaluate`.

    Args:
        file: File of the network.
        tasks: Names of tasks.
        split: Split that is measured.
        data: Fields of :class:`~geomerge.expert_options.ExpertOptions`.

    Raises:
        GeomergeError: If the file, a task or an option cannot be used.
    """
    normalisation = tuple(data.pop("normalisation", ()))
    return evaluate(file, tasks, split, ExpertOptions(normalisation=normalisation, **data))


def open_network(
    file: str | Path, arch: str | None = None, device: str = "cpu"
) -> tuple[Checkpoint, Network]:
    """Read a file and rebuild its network, as in version 0.1; see ``gm.Expert.load``."""
    checkpoint = load_network(file)
    return checkpoint, Expert.from_checkpoint(checkpoint, arch, device=device).network
