"""The table of methods on a stream."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from avalanche.benchmarks import benchmark_from_datasets, task_incremental_benchmark
from avalanche.benchmarks.utils import as_classification_dataset
from torch import nn
from torch.utils.data import TensorDataset

from geomerge.data import load_task
from geomerge.errors import NumericalError, OptionError
from geomerge.monitor.progress import Progress
from geomerge.report.tables import stream_markdown, stream_table
from geomerge.strategies import StreamOptions, stream

pytestmark = pytest.mark.filterwarnings("ignore:No loggers specified")
QUICK: dict[str, Any] = {
    "experiences": 2, "epochs": 3, "batch": 32, "memory_examples": (20,), "arch": "mlp-16"
}  # fmt: skip


def test_a_table_has_every_row_and_says_the_same_again() -> None:
    options = StreamOptions("split-digits", **QUICK)
    seen: list[Progress] = []
    result = stream(options=options, progress=seen.append)
    rows = {row.name: row for row in result.rows}
    assert tuple(rows) == options.rows == options.all_rows
    steps = [(one.walk, one.step, one.steps) for one in seen if not one.whole]
    assert ("naive", 1, 2) in steps
    assert steps[-1] == ("joint", 2, 2)
    assert [one.walk for one in seen if one.whole] == list(options.rows)
    assert len(rows["joint"].matrix) == 1
    assert rows["joint"].forgetting is None
    assert rows["joint"].accuracy > rows["naive"].accuracy
    ours = rows["geodesic"]
    assert len(ours.merges) == 1
    assert ours.seconds["merging"] > 0
    assert ours.kept["megabytes"] > 0
    assert (ours.kept["labels"], rows["naive"].passes) == (0, pytest.approx(3))
    assert rows["ewc"].passes == pytest.approx(4)
    (again,) = stream("split-digits", only=("ewc",), **QUICK).rows
    assert again.matrix == rows["ewc"].matrix


def test_a_row_that_diverges_is_named() -> None:
    given = {**QUICK, "only": ("naive", "joint"), "rates": ("naive=1e9",)}
    result = stream("split-digits", **given)
    assert [row.name for row in result.rows] == ["joint"]
    (note,) = result.notes
    assert "the weights of naive stopped being finite in experience 1" in note
    with pytest.raises(NumericalError, match="naive stopped being finite"):
        stream("split-digits", **{**given, "only": ("naive",)})


def benchmark(*parts: range) -> Any:
    """Avalanche's own benchmark of some of the digits."""
    split = load_task("digits").train
    x = split.inputs.batch(slice(None))
    assert isinstance(x, torch.Tensor)
    data = {}
    for name, part in (("train", slice(0, 800)), ("test", slice(800, None))):
        data[name] = []
        for classes in parts:
            chosen = [i for i, y in enumerate(split.labels[part].tolist()) if y in classes]
            found = TensorDataset(x[part][chosen], split.labels[part][chosen])
            found.targets = found.tensors[1].tolist()
            data[name].append(as_classification_dataset(found))
    return benchmark_from_datasets(**data)


def test_a_benchmark_and_a_network_of_ones_own() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 10))
    before = network[1].weight.clone()
    given = benchmark(range(5), range(5, 10))
    result = stream(given, network=network, only=("geodesic", "naive", "replay-200"), epochs=10)
    assert [len(row.matrix) for row in result.rows] == [2, 2, 2]
    assert result["replay-200"].accuracy > result["naive"].accuracy
    assert torch.equal(network[1].weight, before)
    about = result.to_json()
    assert about["stream"]["protocol"] == "class"
    assert about["network"] == {
        "architecture": "Sequential", "outputs": 10, "heads": 1, "parameters": 910,
    }  # fmt: skip
    sizes = [one["train"] + one["select"] for one in about["stream"]["experiences"]]
    assert sum(sizes) == 800
    named = stream("split-digits", only=("naive",), **QUICK).recipe
    assert result.recipe["stream"]["objects"] != named["stream"].get("objects")
    with pytest.raises(OptionError, match="no row 'navie'"):
        result["navie"]


def test_a_bound_at_chance_is_marked() -> None:
    result = stream("split-digits", only=("joint",), rates=("joint=1e-9",), **QUICK)
    assert result["joint"].hardly_trained
    assert any("joint is at chance" in note and "bounds nothing" in note for note in result.notes)
    assert stream_table(result.to_json())[1][0][0] == "joint (at chance)"
    assert "- joint hardly trained" in stream_markdown(result.to_json())
    assert not stream("split-digits", only=("joint",), **QUICK)["joint"].hardly_trained


def test_task_labels_are_heads() -> None:
    given = task_incremental_benchmark(benchmark(range(5), range(5)))
    result = stream(given, only=("naive",), epochs=1, arch="mlp-8")
    assert result.to_json()["stream"]["protocol"] == "task"
    assert result.to_json()["network"]["heads"] == 2


def test_a_benchmark_needs_as_many_tests() -> None:
    given = benchmark(range(5), range(5, 10))
    del given.streams["test"]
    given.test_stream = given.train_stream[:1]
    with pytest.raises(OptionError, match="as many test as training experiences, got 1 and 2"):
        stream(given, only=("naive",))
