"""Section of a merge's page on its certificate: counts, intervals, self-tests, digests."""

from __future__ import annotations

from collections.abc import Iterator

from geomerge.report.pages.model import Section, Table
from geomerge.report.pages.texts import number, percent
from geomerge.report.schema import Certificate, Count, MergeRunReport

__all__ = ["certificate_section"]


def certificate_section(report: MergeRunReport) -> Section:
    """Return the section on the certificate of a merge.

    Args:
        report: Content of ``report.json``, with its certificate.
    """
    given = report["certificate"]
    counts = [
        [
            row,
            split,
            name,
            *_counted(counted),
        ]
        for row, splits in given["accuracies"].items()
        for split, names in (("select", splits["select"]), ("test", splits["test"]))
        for name, counted in names.items()
    ]
    bracket = [
        [f"{point['t']:.4f}", *(_counted(c)[0] for c in point["select"].values())]
        for point in given["bracket"]
    ]
    legs = [
        [f"leg of {name}", str(leg["steps"]), number(leg["predicted"]), number(leg["measured"])]
        for name, leg in given["drift"]["legs"].items()
    ]
    programs = given["programs"]
    return Section(
        "Certificate",
        [
            "geomerge verify checks every claim below again with the files of this folder, the "
            "networks and the data, and lists those that hold.",
            Table(
                "Accuracies with their 95 % intervals (Wilson's score)",
                ("network", "split", "task of", "accuracy", "interval, %", "right"),
                counts,
            ),
            Table(
                "The stored points on both sides of the crossover, selection splits",
                ("t", *(f"task of {name}" for name in given["bracket"][0]["select"])),
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
                "Self-tests of this run, exact to the bit",
                ("self-test", "holds"),
                [[name, "yes" if holds else "no"] for name, holds in given["identity"].items()],
            ),
            f"Quadratic programs solved: {programs['solved']}"
            + (
                f"; their optimality conditions hold to {programs['largest_residual']:.1g}."
                if programs["solved"]
                else "; no budget bound."
            ),
            Table(
                "SHA-256; those of data, path and images are in report.json",
                ("file", "hash"),
                list(_hashes(given)),
            ),
            Table(
                "Made with",
                ("part", "version"),
                [[name, str(value)] for name, value in given["environment"].items()],
            ),
        ],
    )


def _counted(counted: Count) -> list[str]:
    """Return what was counted, its interval and of how many, as cells."""
    if "perplexity" in counted:
        return [f"perplexity {counted['perplexity']:.2f}", "-", f"{counted['of']} tokens"]
    low, high = counted["interval"]
    return [
        percent(counted["accuracy"]),
        f"{100 * low:.2f} to {100 * high:.2f}",
        f"{counted['correct']} of {counted['of']}",
    ]


def _hashes(given: Certificate) -> Iterator[list[str]]:
    for name, digest in given["inputs"].items():
        yield [f"input {name}", str(digest)]
    for name, digest in given["files"].items():
        if "/" not in name:
            yield [name, digest]
