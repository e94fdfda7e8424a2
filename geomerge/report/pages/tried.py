"""Sections of a merge's page on its candidate walks, and on budgets and their shadow prices."""

from __future__ import annotations

from geomerge.report.pages.model import Section, Table
from geomerge.report.pages.texts import number, shown
from geomerge.report.schema import MergeRunReport

__all__ = ["budgets_section", "candidates_section"]


def candidates_section(report: MergeRunReport) -> Section:
    """Return the section of candidate walks and of the legs of the finished path."""
    rows, own = [], report["networks"]
    for k, stage in enumerate(report["stages"]):
        for c in stage["candidates"]:
            rows.append([
                f"damping {c['damping']:g}" + (f", stage {k + 1}" if k else ""),
                number(c["length"]),
                str(c["step"]),
                number(c["value"]),
                ", ".join(f"{name} {shown(v, own[name])}" for name, v in c["select"].items()),
                "yes" if c["within_budgets"] else "no",
                "kept" if c["chosen"] else "",
            ])  # fmt: skip
    legs = [
        [
            f"from {leg['walked_from']} to {leg['to']}",
            " and ".join(leg["keeps_function_of"]) or "nothing",
            leg["metric"],
            number(leg["length"]),
        ]
        for leg in report["legs"]
    ]
    kept = [row[0] for row in rows if row[-1]]
    return Section(
        "Candidate paths",
        [
            "Several walks were tried; of those with nearly the best picked point the shortest is "
            "kept. Length is the sum of the steps' functional changes, in units of the "
            "metric's output.",
            Table(
                "Candidates",
                ("walk", "length", "picked step", "value", "selection splits", "in budget", ""),
                rows,
                kept,
            ),
            Table("Legs of the finished path", ("leg", "keeps", "metric", "length"), legs),
        ],
    )


def budgets_section(report: MergeRunReport) -> list[Section]:
    """Return the section of budgets and their shadow prices; none without budgets."""
    tables: list[Table] = []
    for stage in report["stages"]:
        budgets = stage["budgets"]
        if budgets is None:
            continue
        rows = [
            [
                name,
                number(budgets["limits"][name]),
                str(price["steps_bound"]),
                number(price["mean"]),
                number(price["largest"]),
            ]
            for name, price in budgets["shadow_prices"].items()
        ]
        tables.append(
            Table(
                f"A quadratic program in {budgets['programs_solved']} of {budgets['steps']} steps; "
                f"its conditions hold to {budgets['largest_residual']:.1g}",
                ("budget", "at most", "steps bound", "mean price", "largest price"),
                rows,
            )
        )
    if not tables:
        return []
    about = (
        "A budget limits the increase of a loss. Its shadow price is the additional progress of a "
        "step toward the other function for one more unit of budget: zero where the budget does "
        "not bind."
    )
    return [Section("Budgets and shadow prices", [about, *tables])]
