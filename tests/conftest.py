"""Shared cases: tiny networks in float64, and two trained networks on scikit-learn's digits."""

from __future__ import annotations

import os
from pathlib import Path

# The networks here are tiny: a second thread costs more than it gives, in subprocesses too.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from torch import nn

from geomerge import Network, load_task
from geomerge.training import train_checkpoint


def small_mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))


def small_cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 3, 2, stride=2), nn.Tanh(), nn.Flatten(), nn.Linear(12, 3, bias=False)
    )


def small_normed() -> nn.Module:
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64, 6),
        nn.LayerNorm(6),
        nn.Linear(6, 3),
    )
    with torch.no_grad():
        net[1].running_mean.uniform_(-0.3, 0.3)
        net[1].running_var.uniform_(0.5, 2)
    return net


CASES = {
    "mlp": (small_mlp, (5,)),
    "cnn": (small_cnn, (2, 4, 4)),
    "normed": (small_normed, (2, 4, 4)),
}


@pytest.fixture(params=list(CASES))
def case(request: pytest.FixtureRequest) -> tuple[Network, torch.Tensor]:
    """A network in float64 and a batch of its inputs."""
    make, shape = CASES[request.param]
    torch.manual_seed(0)
    network = Network(make().double())
    return network, torch.randn(7, *shape, dtype=torch.float64)


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a.pt (digits) and b.pt (permuted digits), both with sketches."""
    folder = tmp_path_factory.mktemp("digits")
    for k, (name, task) in enumerate((("a", "digits"), ("b", "digits-permuted"))):
        train_checkpoint(
            folder / f"{name}.pt", "lenet-300-100", load_task(task), epochs=20,
            learning_rate=0.02, seed=k,
        )  # fmt: skip
    return folder


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of MNIST, Fashion-MNIST and CIFAR-10, or a skip."""
    root = Path(os.environ.get("GEOMERGE_DATA", "data"))
    if not (root / "MNIST").is_dir():
        pytest.skip(f"no MNIST under {root}: set GEOMERGE_DATA to run the tests on real data")
    return root
