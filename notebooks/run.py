"""Run the notebooks: in full and into their files, or shortened (--smoke) into build/notebooks."""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

HERE = Path(__file__).parent
ROOT = HERE.parent
PLACES = re.compile(r"(?<![\w.])/(?:home|root|tmp|work|Users|mnt|opt|usr|var|private)/[\w.-]+")


def texts(output: dict[str, Any]) -> list[str]:
    """Return all that an output shows as text."""
    shown = [output.get("text", ""), *output.get("data", {}).values()]
    return [part if isinstance(part, str) else "".join(part) for part in shown]


def complaints(notebook: Any) -> list[str]:
    """Return what is wrong with a notebook's outputs: errors, warnings, places of a machine."""
    found = []
    for number, cell in enumerate(notebook.cells):
        for output in cell.get("outputs", []):
            if output["output_type"] == "error":
                found.append(f"cell {number} failed: {output['ename']}: {output['evalue']}")
            elif output.get("name") == "stderr":
                found.append(f"cell {number} writes to stderr: {texts(output)[0].strip()}")
            for text in texts(output):
                if place := PLACES.search(text):
                    found.append(f"cell {number} shows a place on this machine: {place[0]}")
    return found


def run(file: Path, smoke: bool) -> Any:
    """Return an executed notebook; it works in a folder of its own, which is gone afterwards."""
    notebook = nbformat.read(file, as_version=4)
    data = os.environ.get("GEOMERGE_DATA")
    env = {
        **os.environ,
        # The kernel, and the commands in its cells, are those of this Python and this checkout.
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        "PYTHONPATH": str(ROOT),
        "GEOMERGE_SMOKE": "1" if smoke else "",
    }
    if data is not None:
        env["GEOMERGE_DATA"] = str(Path(data).resolve())
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(
            notebook,
            timeout=900,
            kernel_name="python3",
            record_timing=False,
            coalesce_streams=True,
            resources={"metadata": {"path": folder}},
        )
        client.execute(env=env)
    return notebook


def main() -> None:
    """Run those that are named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="such as 01-geometry; default all")
    parser.add_argument("--smoke", action="store_true", help="shortened, into build/notebooks")
    options = parser.parse_args()
    files = [HERE / f"{name}.ipynb" for name in options.names] or sorted(HERE.glob("*.ipynb"))
    for file in files:
        try:
            notebook = run(file, options.smoke)
        except CellExecutionError as error:
            sys.exit(f"{file.name} failed: {error.ename}: {error.evalue}")
        if found := complaints(notebook):
            sys.exit("\n".join([f"{file.name}:", *found]))
        out = ROOT / "build" / "notebooks" / file.name if options.smoke else file
        out.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(notebook, out)
        print(out.relative_to(ROOT))


if __name__ == "__main__":
    main()
