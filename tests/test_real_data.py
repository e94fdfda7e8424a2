"""The main job on MNIST and Fashion-MNIST, shortened: long enough to mean something."""

from __future__ import annotations

from pathlib import Path

import pytest
from merges import run_of

from geomerge import load_task
from geomerge.training import train_checkpoint


@pytest.mark.slow
def test_mnist_and_fashion_in_one_network(real_data: Path, tmp_path: Path) -> None:
    for k, (name, task) in enumerate((("a", "mnist"), ("b", "fashion-mnist"))):
        found = train_checkpoint(
            tmp_path / f"{name}.pt", "mlp", load_task(task, data_root=real_data), epochs=4, seed=k
        )
        assert found["test"] > (0.975, 0.87)[k]
    options = {"manifold": ("mnist",), "data_root": str(real_data)}
    _, report, _ = run_of([tmp_path / "a.pt", tmp_path / "b.pt"], options, out=tmp_path / "run")
    smaller = {row["name"]: min(row["test"].values()) for row in report["results"]}
    assert smaller["crossover"] > 0.85
    assert smaller["crossover"] > smaller["Euclidean walk"] + 0.04
    assert smaller["crossover"] > smaller["straight line"] + 0.10
    assert len(list((tmp_path / "run" / "path").glob("*.safetensors"))) <= 66
    step = report["curve"][0]
    assert (step["t"], report["curve"][-1]["t"]) == (0.0, 1.0)


@pytest.mark.slow
def test_the_trained_vgg11_is_recognised_and_measured(real_data: Path) -> None:
    from geomerge.evaluation.evaluate import evaluate
    from geomerge.expert_options import ExpertOptions

    place = ExpertOptions(data_root=str(real_data))
    found = evaluate(real_data / "vgg11_cifar10.pt", ["cifar10"], options=place)
    assert found["tasks"][0]["accuracy"] == pytest.approx(0.8389, abs=2e-3)
