"""``geomerge verify``: checks of the claims in a merge's certificate."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from geomerge.certificate.verify import verify_run
from geomerge.cli.console import show_notes, working
from geomerge.cli.flags import Flags
from geomerge.cli.options import Json
from geomerge.errors import OptionError
from geomerge.expert_options import ExpertOptions

__all__ = ["verify"]

_WORDS = {True: "holds", False: "FAILS", None: "not checked"}


def verify(
    run: Annotated[Path, typer.Argument(help="folder of a finished merge")],
    data: Annotated[ExpertOptions, Flags(without=("manifold", "normalisation"))],
    network: Annotated[
        list[str] | None,
        typer.Option(help="a=FILE: current path of an input file", rich_help_panel="data"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Check the certificate of a finished merge.

    The exit code is 1 if a claim does not hold. Claims with missing data or input files are not
    checked and do not affect it.
    """
    with working(f"verifying {run}"):
        found = verify_run(
            run,
            networks=_places(network or ()),
            arch=data.arch,
            data_root=data.data_root,
            download=data.download,
            device=data.device,
        )
    if as_json:
        print(json.dumps({"holds": found.holds, **asdict(found)}, indent=1))
    else:
        said = ""
        for claim in found.claims:
            detail = claim.detail if claim.detail != said else "as above"
            said = claim.detail
            print(f"{_WORDS[claim.holds]:<12}{claim.name}" + (f": {detail}" if said else ""))
        show_notes(found.notes)
        checked = [claim for claim in found.claims if claim.holds is not None]
        held = sum(claim.holds is True for claim in checked)
        print(f"{held} of {len(checked)} claims hold, {len(found.claims) - len(checked)} unchecked")
    if not found.holds:
        raise typer.Exit(1)


def _places(texts: Sequence[str]) -> dict[str, Path]:
    """Return the files of ``"a=FILE"`` texts, by name of the network.

    Raises:
        OptionError: If a text has no file, or two texts have the same network.
    """
    places: dict[str, Path] = {}
    for text in texts:
        name, _, file = text.partition("=")
        if not name or not file or name in places:
            raise OptionError(
                f"expected `network` to be NAME=FILE such as a=a.pt, once for each, got {text!r}"
            )
        places[name] = Path(file)
    return places
