"""``geomerge verify``: which claims of a finished merge's certificate hold."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from geomerge.cli.options import Arch, DataRoot, Device, Download, Json

__all__ = ["verify"]

_WORDS = {True: "holds", False: "FAILS", None: "not checked"}


def verify(
    run: Annotated[Path, typer.Argument(help="Folder of a finished merge.")],
    network: Annotated[
        list[str] | None, typer.Option(help="a=FILE: where an input file is now.")
    ] = None,
    arch: Arch = None,
    device: Device = "cpu",
    data_root: DataRoot = None,
    download: Download = False,
    as_json: Json = False,
) -> None:
    """Check the certificate of a finished merge."""
    from geomerge.certificate.verify import verify_run

    found = verify_run(
        run, networks=_places(network or ()), arch=arch,
        data_root=data_root, download=download, device=device,
    )  # fmt: skip
    if as_json:
        print(json.dumps({"holds": found.holds, **asdict(found)}, indent=1))
    else:
        said = ""
        for claim in found.claims:
            detail = claim.detail if claim.detail != said else "as above"
            said = claim.detail
            print(f"{_WORDS[claim.holds]:<12}{claim.name}" + (f": {detail}" if said else ""))
        for note in found.notes:
            print(f"note: {note}")
        checked = [claim for claim in found.claims if claim.holds is not None]
        held = sum(claim.holds is True for claim in checked)
        print(f"{held} of {len(checked)} claims hold, {len(found.claims) - len(checked)} unchecked")
    if not found.holds:
        raise typer.Exit(1)


def _places(texts: Sequence[str]) -> dict[str, Path]:
    """Return the files that ``"a=FILE"`` texts name, by the name of a network.

    Raises:
        OptionError: If a text is none, or two are of one network.
    """
    from geomerge.errors import OptionError

    places: dict[str, Path] = {}
    for text in texts:
        name, _, file = text.partition("=")
        if not name or not file or name in places:
            raise OptionError(
                f"expected `networks` to be NAME=FILE such as a=a.pt, once for each, got {text!r}"
            )
        places[name] = Path(file)
    return places
