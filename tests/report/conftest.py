"""Finished runs of tiny networks, one of each kind that has a network."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from geomerge import Checkpoint, MergeOptions, Network, load_task, save_checkpoint
from geomerge.baselines import fine_tune
from geomerge.runs import run_merge, run_reconfigure, run_sparsify
from geomerge.sparsifying.options import SparsifyOptions

QUICK = SparsifyOptions(steps=20, stages=2, seed=1)


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a.pt, b.pt and the runs ``merge``, ``separate``, ``sparsify``, ``moves``."""
    folder = tmp_path_factory.mktemp("runs")
    for seed, (name, task) in enumerate((("a", "digits"), ("b", "digits-permuted"))):
        torch.manual_seed(seed)
        module = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
        network = Network(module)
        *_, w = fine_tune(
            network, network.initial, load_task(task).train, steps=200, learning_rate=0.1
        )
        save_checkpoint(folder / f"{name}.pt", Checkpoint(network.state_dict(w), {"task": task}))
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
