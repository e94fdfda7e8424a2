"""``geomerge inspect``: the damage that a network takes without layers, units and weights."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer

from geomerge.cli.console import percent
from geomerge.cli.flags import Flags
from geomerge.cli.options import Json, NetworkFile
from geomerge.io.files import check_output, write_bytes
from geomerge.loading import ExpertOptions, load_expert
from geomerge.pruning.inspect import inspect as inspect_expert
from geomerge.pruning.options import InspectOptions

__all__ = ["inspect", "show_findings"]


def inspect(
    network: NetworkFile,
    manifold: Annotated[
        str,
        typer.Option(
            help="task of the network; labels serve for accuracies only", rich_help_panel="data"
        ),
    ],
    options: InspectOptions,
    data: Annotated[ExpertOptions, Flags(without=("manifold",))],
    out: Annotated[
        Path | None,
        typer.Option(help="file of all numbers: .json, replaced at once", rich_help_panel="output"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show what a network can lose, and what that costs.

    The network is measured without each layer, without each unit, and without its weakest weights.
    """
    from rich.console import Console

    if out is not None:
        check_output(out, (".json",))
    with Console(stderr=True).status(f"measuring {network}"):
        expert = load_expert(network, replace(data, manifold=manifold))
        found = inspect_expert(expert, options).to_json()
    text = json.dumps(found, indent=1, allow_nan=False)
    if out is not None:
        write_bytes(out, (text + "\n").encode())
    if as_json:
        print(text)
        return
    show_findings(found)
    if out is not None:
        print(f"all numbers: {out}")


def show_findings(found: dict[str, Any]) -> None:
    """Print the tables, each with an explanation."""
    from rich.console import Console

    console = Console(highlight=False, markup=False, soft_wrap=True)
    say = console.print
    say(
        f"{found['file']} on {found['manifold']}: {found['weights']} weights, "
        f"{percent(found['zeros'])} % of those in matrices are zero, accuracy "
        f"{percent(found['accuracy'])} % of {found['held_out_inputs']} held-out inputs"
    )
    say(_meaning(found["output"]))
    say()
    _show_spectra(console, found)
    _show_layers(console, found)
    _show_units(console, found)
    _show_masks(console, found)


def _meaning(output: str) -> str:
    """Return the definition of a functional change, with its largest value."""
    from geomerge.metrics.outputs import TEMPERATURE

    most = {"hellinger": 8.0, "tempered": 8 * TEMPERATURE**2, "softmax": 2.0}.get(output)
    bound = "without bound" if most is None else f"{most:g} at most"
    return (
        f"functional change: mean over inputs of |phi' - phi|^2, phi the {output} outputs; "
        f"0 is the same function, {bound}"
    )


def _show_spectra(console: Any, found: dict[str, Any]) -> None:
    table = _table(
        f"where the function is sensitive: the metric on {found['metric_inputs']} inputs",
        (
            "layer",
            "weights",
            "zero\n%",
            "trace\n%",
            "effective\nrank",
            "99 % of\ntrace in",
            "flat\n%",
        ),
    )
    whole = {
        "name": "all",
        "weights": found["spectrum"]["directions"],
        "zeros": None,
        "trace_share": 1.0,
        "spectrum": found["spectrum"],
    }
    others = any(row["removal"] is None for row in found["layers"])
    for row in (*found["layers"], whole):
        spectrum = row["spectrum"]
        table.add_row(
            row["name"], str(row["weights"]), percent(row["zeros"]), percent(row["trace_share"]),
            f"{spectrum['effective_rank']:.1f}", str(spectrum["directions_99"]),
            percent(spectrum["flat"]), style="bold" if row is whole else None,
        )  # fmt: skip
    console.print(table)
    console.print(
        "trace: the layer's share of what small random changes of all weights would do.\n"
        "effective rank: over how many directions of weight space that spreads; the fewer, the "
        "more can change unseen.\n"
        "flat: directions whose eigenvalue is under a millionth of the largest (over all layers: "
        f"{_number(found['spectrum']['largest'])}). A layer with more inputs of its own than it "
        "was shown examples has some for that reason alone.\n"
        + ("others: weights in no matrix, such as those of norms.\n" if others else "")
    )


def _show_layers(console: Any, found: dict[str, Any]) -> None:
    table = _table(
        "without one layer: all its weights at zero",
        ("layer", "predicted\nchange", "measured\nchange", "same label\n%", "accuracy\n%"),
    )
    for row in found["layers"]:
        if (removal := row["removal"]) is not None:
            table.add_row(row["name"], *_damage(removal))
    console.print(table)
    console.print(
        "predicted: by the metric of the intact network. Losing a whole layer is no small change, "
        "so it is no forecast.\n"
        "Layers whose measured changes are small can go as they are; where they are about equal, "
        "nothing is left of the function.\n"
    )


def _show_units(console: Any, found: dict[str, Any]) -> None:
    if found["units"]:
        table = _table(
            "without one unit: functional change, of all units of a layer",
            (
                "layer",
                "units",
                "least",
                "median",
                "median\nmeasured",
                "median\ncompensated",
                "rank\ncorr.",
            ),
        )
        for one in found["units"]:
            rows = one["units"]
            changes = {
                kind: [row[kind] for row in rows if row[kind] is not None]
                for kind in ("predicted", "measured", "compensated")
            }
            table.add_row(
                _named(one["layers"]),
                str(len(rows)),
                _number(min(changes["predicted"], default=None)),
                *(_number(median(values) if values else None) for values in changes.values()),
                "-" if one["correlation"] is None else f"{one['correlation']:.2f}",
            )
        console.print(table)
        console.print(
            "least, median: predicted, nothing else moving. measured: the same, on "
            f"{found['unit_inputs']} held-out inputs; {_sampled(found)}.\n"
            "compensated: predicted, where the weights beside the unit's make up for it.\n"
            "Where convolutions read a unit, predicted takes the places in an image for "
            "independent and comes out several times too small: read the order.\n"
            "rank corr.: Spearman's, of predicted and measured; at 1 the order is right, and the "
            "units that come out cheapest are. --json names every unit."
        )
    for why in dict.fromkeys(found["refused"].values()):
        names = ", ".join(name for name, reason in found["refused"].items() if reason == why)
        console.print(f"units of {names} cannot be removed: {why}")
    console.print()


def _show_masks(console: Any, found: dict[str, Any]) -> None:
    table = _table(
        "without the weakest weights, all at once",
        ("zero\n%", "by", "predicted\nchange", "measured\nchange", "same label\n%", "accuracy\n%"),
    )
    for row in sorted(found["masks"], key=lambda row: row["share"]):
        table.add_row(f"{100 * row['share']:g}", row["kind"], *_damage(row))
    console.print(table)
    console.print(
        "magnitude: the smallest weights go. obs (Optimal Brain Surgeon): those that cost the "
        "function least go, the others could make up for them.\n"
        "Nothing was compensated or trained: this is the damage to repair. Where measured leaves "
        "predicted, the step is too large for the metric; go there in stages."
    )


def _table(title: str, headings: tuple[str, ...]) -> Any:
    from rich.table import Table

    table = Table(title=title)
    for k, heading in enumerate(headings):
        table.add_column(heading, justify="right" if k else "left", overflow="fold")
    return table


def _damage(row: dict[str, Any]) -> tuple[str, ...]:
    changes = _number(row["predicted"]), _number(row["measured"])
    return *changes, percent(row["agreement"]), percent(row["accuracy"])


def _named(layers: list[str]) -> str:
    return layers[0] if len(layers) == 1 else f"{layers[0]} and {len(layers) - 1} tied"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2g}" if value < 10 else f"{value:.1f}"


def _sampled(found: dict[str, Any]) -> str:
    """Return a sentence on the units that were measured."""
    most = max(one["measured"] for one in found["units"])
    if all(one["measured"] == len(one["units"]) for one in found["units"]):
        return "all units"
    return f"of layers with more than {most} units, {most} from the cheapest to the costliest"
