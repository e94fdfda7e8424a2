"""The rows of a table: what they do to a network, and what they keep."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from avalanche.training.supervised import Naive
from torch import Tensor, nn

from geomerge.errors import NumericalError
from geomerge.runs.stream_options import StreamOptions
from geomerge.strategies import baselines
from geomerge.strategies.averages import AveragedWeights
from geomerge.strategies.networks import make_network
from geomerge.strategies.rows import StreamRow, Training
from geomerge.strategies.streams import Stream, make_stream
from geomerge.strategies.table import run_row, run_table, summary

FLOAT = 4

pytestmark = pytest.mark.filterwarnings("ignore:No loggers specified")


@pytest.fixture(scope="module")
def split() -> Stream:
    return make_stream(StreamOptions("split-digits"))


@pytest.fixture(scope="module")
def tasks() -> Stream:
    return make_stream(StreamOptions("split-digits", scenario="task"))


def training(stream: Stream, **options: Any) -> Training:
    return Training(
        make_network(stream, 16, 0), **{"rate": 0.1, "batch": 32, "epochs": 2} | options
    )


def learned(row: StreamRow, stream: Stream, count: int) -> StreamRow:
    torch.manual_seed(0)
    for experience in stream.benchmark.train_stream[:count]:
        row.strategy.train(experience, eval_streams=[], reset_optimizer_state=True)
    return row


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in module.named_parameters()}


@pytest.mark.parametrize("warm", [True, False])
def test_averages_are_what_their_names_say(split: Stream, warm: bool) -> None:
    model = make_network(split, 16, 0)
    first = weights(model)

    def expert(start: dict[str, Tensor], k: int) -> dict[str, Tensor]:
        module = copy.deepcopy(model)
        module.load_state_dict(start)
        options = {"train_mb_size": 10_000, "evaluator": None}
        naive = Naive(model=module, optimizer=torch.optim.SGD(module.parameters(), 0.5), **options)
        naive.train(split.benchmark.train_stream[k])
        return weights(module)

    wanted = expert(first, 0)
    for k in (1, 2):
        other = expert(wanted if warm else first, k)
        wanted = {n: w + (other[n] - w) / (k + 1) for n, w in wanted.items()}

    averaged = copy.deepcopy(model)
    strategy = AveragedWeights(
        warm=warm, model=averaged, optimizer=torch.optim.SGD(averaged.parameters(), 0.5),
        train_mb_size=10_000, evaluator=None,
    )  # fmt: skip
    for experience in split.benchmark.train_stream[:3]:
        strategy.train(experience)
    for name, value in weights(averaged).items():
        torch.testing.assert_close(value, wanted[name], atol=1e-5, rtol=1e-4)
    count = sum(p.numel() for p in model.parameters())
    assert strategy.kept_bytes == (0 if warm else FLOAT * count)


@pytest.mark.parametrize("warm", [True, False])
def test_averages_leave_the_heads_of_earlier_tasks_alone(tasks: Stream, warm: bool) -> None:
    row = baselines.average(training(tasks), warm=warm)
    before = weights(learned(row, tasks, 1).strategy.model)
    for experience in tasks.benchmark.train_stream[1:3]:
        row.strategy.train(experience, eval_streams=[])
    after = weights(row.strategy.model)
    head = "classifier.classifiers.0.classifier.weight"
    assert torch.equal(before[head], after[head])
    assert not torch.equal(before["model.features.0.weight"], after["model.features.0.weight"])


def test_the_evaluation_after_training_sees_the_mean(split: Stream) -> None:
    model = make_network(split, 16, 0)
    strategy = AveragedWeights(
        model=model, optimizer=torch.optim.SGD(model.parameters(), 0.5), evaluator=None,
        train_mb_size=32, eval_every=1,
    )  # fmt: skip
    (periodic,) = [p for p in strategy.plugins if type(p).__name__ == "PeriodicEval"]
    strategy.train(split.benchmark.train_stream[0])
    assert periodic.do_final


def test_what_is_kept_is_measured(split: Stream) -> None:
    setup = training(split)
    n = sum(p.numel() for p in setup.model.parameters())
    passed = sum(len(e.dataset) for e in split.benchmark.train_stream[:2])
    expected = {
        "naive": (baselines.naive(setup), 0, 0, 0),
        "lwf": (baselines.lwf(setup, 1.0), 0, 0, 0),
        "running-mean": (baselines.average(setup, warm=True), 0, 0, 0),
        "mean": (baselines.average(setup, warm=False), FLOAT * n, 0, 0),
        "ewc": (baselines.ewc(setup, 10.0), 2 * 2 * FLOAT * n, 0, passed),
        "si": (baselines.si(setup, 10.0), 3 * FLOAT * n, 0, passed),
        "gem": (baselines.gem(setup, 50, 5), 20 * (64 * FLOAT + 8), 20, 20),
        "replay": (baselines.replay(setup, 31), 31 * (64 * FLOAT + 8), 31, 31),
    }
    for name, (row, size, examples, labels) in expected.items():
        kept = learned(row, split, 2).kept()
        assert (kept.bytes, kept.examples, kept.labels) == (size, examples, labels), name


@pytest.mark.parametrize("name", ["ewc", "si", "lwf"])
def test_strengths_have_an_effect(split: Stream, name: str) -> None:
    make = {"ewc": baselines.ewc, "si": baselines.si, "lwf": baselines.lwf}[name]
    weak, strong = (
        weights(learned(make(training(split), strength), split, 2).strategy.model)
        for strength in (1e-6, 10.0)
    )
    assert not torch.equal(weak["features.0.weight"], strong["features.0.weight"])


def test_the_learning_rate_falls_and_examples_are_counted(split: Stream) -> None:
    row = baselines.naive(training(split))
    rates: list[float] = []
    step = row.strategy.optimizer_step
    row.strategy.optimizer_step = lambda: (
        rates.append(row.strategy.optimizer.param_groups[0]["lr"]), step(),
    )  # fmt: skip
    learned(row, split, 1)
    count = len(split.benchmark.train_stream[0].dataset)
    assert row.pace.examples == [2 * count]
    assert row.pace.steps == [len(rates)] == [2 * -(-count // 32)]
    assert rates == pytest.approx([0.1 * (1 - k / len(rates)) for k in range(len(rates))])


def test_half_of_a_batch_comes_from_memory(split: Stream) -> None:
    row = baselines.replay(training(split), 40)
    learned(row, split, 3)
    counts = [2 * len(e.dataset) for e in split.benchmark.train_stream[:3]]
    assert row.pace.examples[0] == counts[0]
    assert row.pace.examples[1:] == [
        c + 32 * steps for c, steps in zip(counts[1:], row.pace.steps[1:], strict=True)
    ]
    kept = set(row.strategy.plugins[0]._storage.buffer.targets)
    assert kept == {c for e in split.benchmark.train_stream[:3] for c in e.dataset.targets}


def test_a_table_has_every_row_and_says_the_same_again() -> None:
    options = StreamOptions(
        "split-digits", experiences=2, epochs=3, batch=32, memory_examples=(20,), arch="mlp-16"
    )
    seen: list[tuple[str, int, int]] = []
    report = run_table(options, lambda *now: seen.append(now[:3]))
    rows = {row["name"]: row for row in report["rows"]}
    assert tuple(rows) == options.rows == options.all_rows
    assert ("naive", 1, 2) in seen
    assert seen[-1] == ("joint", 2, 2)
    assert len(rows["joint"]["matrix"]) == 1
    assert rows["joint"]["forgetting"] is None
    assert rows["joint"]["accuracy"] > rows["naive"]["accuracy"]
    ours = rows["geodesic"]
    assert len(ours["merges"]) == 1
    assert ours["seconds"]["merging"] > 0
    assert ours["kept"]["megabytes"] > 0
    assert (ours["kept"]["labels"], rows["naive"]["passes"]) == (0, pytest.approx(3))
    assert rows["ewc"]["passes"] == pytest.approx(4)
    few = StreamOptions(
        "split-digits", experiences=2, epochs=3, batch=32, memory_examples=(20,), arch="mlp-16",
        only=("ewc",),
    )  # fmt: skip
    (again,) = run_table(few)["rows"]
    assert again["matrix"] == rows["ewc"]["matrix"]


def test_a_row_that_diverges_is_named(split: Stream) -> None:
    row = baselines.naive(training(split, rate=1e9))
    with pytest.raises(NumericalError, match="naive stopped being finite in experience 1"):
        run_row("naive", row, split, StreamOptions("split-digits"))


def test_the_numbers_of_a_matrix() -> None:
    found = summary([[0.8], [0.9, 0.7], [0.5, 0.8, 0.6]])
    assert found["average"] == pytest.approx([0.8, 0.8, 1.9 / 3])
    assert found["accuracy"] == pytest.approx(1.9 / 3)
    assert found["backward_transfer"] == pytest.approx((-0.3 + 0.1) / 2)
    assert found["forgetting"] == pytest.approx((0.4 - 0.1) / 2)
    assert summary([[0.8, 0.9]])["forgetting"] is None
