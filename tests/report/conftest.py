"""Finished runs of tiny networks, one of each kind that has a network."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from geomerge import MergeOptions
from geomerge.pruning.options import SparsifyOptions
from geomerge.runs import run_merge, run_reconfigure, run_sparsify

QUICK = SparsifyOptions(steps=20, stages=2, seed=1)


@pytest.fixture(scope="session")
def runs(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a.pt, b.pt and the runs ``merge``, ``separate``, ``sparsify``, ``moves``."""
    folder = tmp_path_factory.mktemp("runs")
    shutil.copytree(tiny, folder, dirs_exist_ok=True)
    both = ("a=digits", "b=digits-permuted")
    files = [folder / "a.pt", folder / "b.pt"]
    for name, options in {
        "merge": MergeOptions(manifold=both, preset="sketch", damping=1e-4, steps=12, points=8),
        "separate": MergeOptions(manifold=both, head="separate", steps=4, points=8),
    }.items():
        run_merge(files, options, out=folder / name)
    run_sparsify(files[0], replace(QUICK, remove=("1:4",)), out=folder / "sparsify", shrunk=True)
    plan = folder / "plan.yaml"
    plan.write_text('- {name: half, remove: {"1": 8}}\n- {name: back, restore: {"1": 4}}\n')
    run_reconfigure(files[0], plan, QUICK, out=folder / "moves")
    return folder
