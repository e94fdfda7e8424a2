"""The certificate of a run -> a section of its page."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from geomerge.report.pages.model import Section, Table
from geomerge.report.pages.texts import number, percent

__all__ = ["certificate_section"]


def certificate_section(report: dict[str, Any]) -> Section:
    """Return what was certified of a merge.

    Args:
        report: The content of ``report.json``, with its certificate.
    """
    found = report["certificate"]
    counts = [
        [
            row,
            split,
            name,
            percent(counted["accuracy"]),
            f"{100 * counted['interval'][0]:.2f} to {100 * counted['interval'][1]:.2f}",
            f"{counted['correct']} of {counted['of']}",
        ]
        for row, splits in found["accuracies"].items()
        for split, names in splits.items()
        for name, counted in names.items()
    ]
    bracket = [
        [f"{point['t']:.4f}", *(percent(c["accuracy"]) for c in point["select"].values())]
        for point in found["bracket"]
    ]
    legs = [
        [f"leg of {name}", str(leg["steps"]), number(leg["predicted"]), number(leg["measured"])]
        for name, leg in found["drift"]["legs"].items()
    ]
    programs = found["programs"]
    return Section(
        "Certificate",
        [
            "geomerge verify makes every claim below again from the files of this folder, the "
            "networks and the data, and says which hold.",
            Table(
                "Accuracies with their 95 % intervals (Wilson's score)",
                ("network", "split", "task of", "accuracy", "interval, %", "right"),
                counts,
            ),
            Table(
                "The stored points on both sides of the crossover, selection splits",
                ("t", *(f"task of {name}" for name in found["bracket"][0]["select"])),
                bracket,
            )
            if bracket
            else "The crossover is the only stored point.",
            Table(
                "Functional change of the steps, summed",
                ("leg", "steps", "predicted", "measured"),
                legs,
            ),
            Table(
                "Identities checked to the bit in this run",
                ("identity", "holds"),
                [[name, "yes" if holds else "no"] for name, holds in found["identity"].items()],
            ),
            f"Quadratic programs solved: {programs['solved']}"
            + (
                f"; their optimality conditions hold to {programs['largest_residual']:.1g}."
                if programs["solved"]
                else "; no budget bound."
            ),
            Table(
                "SHA-256; report.json has those of data, path and images too",
                ("what", "hash"),
                list(_hashes(found)),
            ),
            Table(
                "Made with",
                ("what", "version"),
                [[name, str(value)] for name, value in found["environment"].items()],
            ),
        ],
    )


def _hashes(found: dict[str, Any]) -> Iterator[list[str]]:
    for name, digest in found["inputs"].items():
        yield [f"input {name}", str(digest)]
    for name, digest in found["files"].items():
        if "/" not in name:
            yield [name, digest]
