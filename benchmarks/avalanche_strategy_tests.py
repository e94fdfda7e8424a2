"""Avalanche's own strategy tests, run with ``GeodesicMerge`` in place of ``Naive``.

    python benchmarks/avalanche_strategy_tests.py PATH/OF/A/CLONE/OF/AVALANCHE

The clone is not changed: a copy of it is patched. Tests are run twice, with ``Naive`` as it is and
with ``GeodesicMerge`` under its name. Those that fail only the second time are listed; the exit
code is 1 if one of them is not among the exceptions below. The network is not used: tests that
download data fail both times. Not part of the tests of geomerge: it takes some minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path

FILES = (
    "test_strategies.py", "test_plugins.py", "test_replay.py", "test_stream_completeness.py",
    "test_supervised_regression.py", "test_update_utils.py",
)  # fmt: skip
# Tests that fail with GeodesicMerge, each with the reason.
EXCEPTIONS = {
    "ReplayTest.test_balancing": "its model cannot take its data; Naive never calls it",
    "TestStrategyReproducibility.test_reproduce_old_base_strategy": "it expects Naive's numbers",
}
PATCH = '''
import warnings

import avalanche.training
import avalanche.training.supervised
import avalanche.training.supervised.strategy_wrappers as wrappers

from geomerge.strategies import GeodesicMerge


class Naive(GeodesicMerge):
    """GeodesicMerge with short walks, so that the tests take no longer than Naive's."""

    def __init__(self, model, optimizer, criterion=None, **keywords):
        given = {"pseudo_inputs": 20, **keywords}
        super().__init__(model=model, optimizer=optimizer, criterion=criterion, **given)


for module in (avalanche.training, avalanche.training.supervised, wrappers):
    module.Naive = Naive
'''


def run(copy: Path, geodesic: bool) -> dict[str, str]:
    """Return the outcome of each test by its name: ``""``, or the first line of what went wrong."""
    conftest, result = copy / "conftest.py", copy / "result.xml"
    conftest.write_text(PATCH if geodesic else "")
    tests = [f"tests/training/{name}" for name in FILES]
    words = ["-q", "-p", "no:cacheprovider", "-o", "filterwarnings=ignore", f"--junitxml={result}"]
    environment = {**os.environ, "FAST_TEST": "True", "PYTHONWARNINGS": "ignore"}
    environment["PYTHONPATH"] = f"{copy}:{os.environ.get('PYTHONPATH', '')}"
    subprocess.run(
        [sys.executable, "-m", "pytest", *words, *tests], cwd=copy, env=environment, check=False
    )
    found = {}
    for case in ElementTree.parse(result).iter("testcase"):
        name = f"{case.get('classname', '').rpartition('.')[2]}.{case.get('name')}"
        wrong = case.find("failure") if case.find("error") is None else case.find("error")
        if case.find("skipped") is None:
            found[name] = "" if wrong is None else (wrong.get("message") or "failed").split("\n")[0]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("clone", type=Path, help="git folder of Avalanche")
    parser.add_argument("--json", type=Path, help="file of the outcomes")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        archive = subprocess.run(
            ["git", "-C", given.clone, "archive", "HEAD"], capture_output=True, check=True
        )
        subprocess.run(["tar", "-x", "-C", copy], input=archive.stdout, check=True)
        naive, geodesic = run(copy, False), run(copy, True)
    passed = [name for name, wrong in naive.items() if not wrong]
    failed = {name: geodesic.get(name, "was not run") for name in passed if geodesic.get(name, "-")}
    print(f"{len(naive)} tests; {len(passed)} pass with Naive, {len(passed) - len(failed)} of them "
          "with GeodesicMerge")  # fmt: skip
    for name, wrong in failed.items():
        print(f"{name}: {EXCEPTIONS.get(name, 'NOT EXPECTED')}\n    {wrong}")
    if given.json is not None:
        given.json.write_text(json.dumps({"naive": naive, "geodesic": geodesic}, indent=1))
    return int(bool(failed.keys() - EXCEPTIONS.keys()))


if __name__ == "__main__":
    sys.exit(main())
