"""``geomerge inspect``: damage of removing layers, units and weights of a network."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from geomerge.cli.console import percent, show_notes, working
from geomerge.cli.flags import Flags
from geomerge.cli.options import Force, Json, NetworkFile
from geomerge.expert_options import ExpertOptions
from geomerge.io.files import check_output, write_bytes
from geomerge.loading import load_expert
from geomerge.metrics.outputs import TEMPERATURE
from geomerge.pruning.damage import Damage
from geomerge.pruning.inspect import Inspection
from geomerge.pruning.inspect import inspect as inspect_expert
from geomerge.pruning.options import InspectOptions

__all__ = ["inspect"]


def inspect(
    network: NetworkFile,
    options: InspectOptions,
    data: Annotated[ExpertOptions, Flags(without=("manifold",))],
    manifold: Annotated[
        str | None,
        typer.Option(
            help="task of the network, default its own; labels are used for accuracies only",
            rich_help_panel="data",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="file for all numbers: .json", rich_help_panel="output"),
    ] = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Measure the damage of removing layers, units and weights.

    The network is measured without each layer, each unit, and the weights of smallest saliency.
    """
    if out is not None:
        check_output(out, (".json",), replace=force)
    with working(f"measuring {network}"):
        expert = load_expert(network, replace(data, manifold=manifold))
        found = inspect_expert(expert, options)
    text = json.dumps(found.to_json(), indent=1, allow_nan=False)
    if out is not None:
        write_bytes(out, (text + "\n").encode())
    if as_json:
        print(text)
        return
    _show(found)
    if out is not None:
        print(f"all numbers: {out}")


def _show(found: Inspection) -> None:
    """Print tables with explanations."""
    console = Console(highlight=False, markup=False, soft_wrap=True)
    console.print(
        f"{found.file} on {found.manifold}: {found.weights} weights, {percent(found.zeros)} % of "
        f"those in matrices are zero, accuracy {percent(found.accuracy)} % of "
        f"{found.held_out_inputs} held-out inputs"
    )
    show_notes(found.notes)
    console.print(_meaning(found.output))
    console.print()
    _show_spectra(console, found)
    _show_layers(console, found)
    _show_units(console, found)
    _show_masks(console, found)


def _meaning(output: str) -> str:
    """Return the definition of a functional change, with its largest value."""
    most = {"hellinger": 8.0, "tempered": 8 * TEMPERATURE**2, "softmax": 2.0}.get(output)
    bound = "without bound" if most is None else f"{most:g} at most"
    return (
        f"functional change: mean over inputs of |phi' - phi|^2, phi the {output} outputs; "
        f"0 is the same function, {bound}"
    )


def _show_spectra(console: Console, found: Inspection) -> None:
    table = _table(
        f"sensitivity of the function: the metric on {found.metric_inputs} inputs",
        (
            "layer", "weights", "zero\n%", "trace\n%", "effective\nrank", "99 % of\ntrace in",
            "flat\n%",
        ),
    )  # fmt: skip
    rows = [
        (one.name, one.weights, one.zeros, one.trace_share, one.spectrum) for one in found.layers
    ]
    whole = found.spectrum
    for name, weights, zeros, trace, spectrum in (
        *rows, ("all", whole.directions, None, 1.0, whole)
    ):  # fmt: skip
        table.add_row(
            name, str(weights), percent(zeros), percent(trace), f"{spectrum.effective_rank:.1f}",
            str(spectrum.directions_99), percent(spectrum.flat),
            style="bold" if spectrum is whole else None,
        )  # fmt: skip
    console.print(table)
    others = any(one.removal is None for one in found.layers)
    console.print(
        "trace: the layer's share of the functional change by small random changes of all "
        "weights.\n"
        "effective rank: number of directions that account for most of the trace; changes along "
        "the others have little effect.\n"
        "flat: directions with an eigenvalue below a millionth of the largest (over all layers: "
        f"{_number(whole.largest)}). A layer with more inputs than examples always has some.\n"
        + ("others: weights outside of matrices, such as those of norms.\n" if others else "")
    )


def _show_layers(console: Console, found: Inspection) -> None:
    table = _table(
        "one layer removed: all its weights at zero",
        ("layer", "predicted\nchange", "measured\nchange", "same label\n%", "accuracy\n%"),
    )
    for one in found.layers:
        if one.removal is not None:
            table.add_row(one.name, *_damage(one.removal))
    console.print(table)
    console.print(
        "predicted: by the metric of the intact network, which is inaccurate for a change as large "
        "as this.\n"
        "Layers with a small measured change can be removed without repair. If all measured "
        "changes are about equal, each removal destroys the function.\n"
    )


def _show_units(console: Console, found: Inspection) -> None:
    if found.units:
        table = _table(
            "one unit removed: functional change, over all units of a layer",
            (
                "layer", "units", "least", "median", "median\nmeasured", "median\ncompensated",
                "rank\ncorr.",
            ),
        )  # fmt: skip
        for one in found.units:
            predicted = [unit.predicted for unit in one.units]
            measured = [unit.measured for unit in one.units if unit.measured is not None]
            compensated = [unit.compensated for unit in one.units]
            table.add_row(
                _named(one.layers),
                str(len(one.units)),
                _number(min(predicted, default=None)),
                *(
                    _number(median(values) if values else None)
                    for values in (predicted, measured, compensated)
                ),
                "-" if one.correlation is None else f"{one.correlation:.2f}",
            )
        console.print(table)
        console.print(
            "least, median: predicted, with no other weight changed. measured: the same, on "
            f"{found.unit_inputs} held-out inputs; {_sampled(found)}.\n"
            "compensated: predicted, with compensation by the consumers' other weights.\n"
            "For units consumed by convolutions, predicted assumes independent positions and is "
            "several times too small; only the order is meaningful.\n"
            "rank corr.: Spearman's rank correlation of predicted and measured; 1 means the same "
            "order. --json lists every unit."
        )
    for why in dict.fromkeys(found.refused.values()):
        names = ", ".join(name for name, reason in found.refused.items() if reason == why)
        console.print(f"units of {names} cannot be removed: {why}")
    console.print()


def _show_masks(console: Console, found: Inspection) -> None:
    table = _table(
        "weights of smallest saliency removed, all at once",
        ("zero\n%", "by", "predicted\nchange", "measured\nchange", "same label\n%", "accuracy\n%"),
    )
    for one in sorted(found.masks, key=lambda mask: mask.share):
        table.add_row(f"{100 * one.share:g}", one.kind, *_damage(one))
    console.print(table)
    console.print(
        "magnitude: removal of the smallest weights. obs (Optimal Brain Surgeon): removal of the "
        "weights with the smallest functional change after compensation.\n"
        "The damage is that without compensation or training. Where measured and predicted differ, "
        "the change is too large for the metric; sparsify in stages."
    )


def _table(title: str, headings: tuple[str, ...]) -> Table:
    table = Table(title=title)
    for k, heading in enumerate(headings):
        table.add_column(heading, justify="right" if k else "left", overflow="fold")
    return table


def _damage(damage: Damage) -> tuple[str, ...]:
    changes = _number(damage.predicted), _number(damage.measured)
    return *changes, percent(damage.agreement), percent(damage.accuracy)


def _named(layers: Sequence[str]) -> str:
    return layers[0] if len(layers) == 1 else f"{layers[0]} and {len(layers) - 1} tied"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2g}" if value < 10 else f"{value:.1f}"


def _sampled(found: Inspection) -> str:
    """Return a description of the measured units."""
    most = max(one.measured for one in found.units)
    if all(one.measured == len(one.units) for one in found.units):
        return "all units"
    return f"of layers with more than {most} units, {most} from the cheapest to the costliest"
