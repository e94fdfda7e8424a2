"""Methods of the stream table: what they do to a network, and what they keep."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from geomerge.errors import OptionError
from geomerge.strategies import STREAM_METHODS
from geomerge.strategies.learner import Learner, Training
from geomerge.strategies.networks import accuracy, make_network
from geomerge.strategies.options import StreamOptions
from geomerge.strategies.registry import STREAM_GROUPS, StreamCase
from geomerge.strategies.streams import Stream, make_stream
from geomerge.strategies.table import make_learner, with_inputs

FLOAT = 4

pytestmark = pytest.mark.filterwarnings("ignore:No loggers specified")


@pytest.fixture(scope="module")
def split() -> Stream:
    return make_stream(StreamOptions("split-digits"))


@pytest.fixture(scope="module")
def tasks() -> Stream:
    return make_stream(StreamOptions("split-digits", scenario="task"))


def learner(stream: Stream, row: str, **options: Any) -> Learner:
    training = Training(make_network(stream, "mlp-16", 0), rate=0.1, batch=32, epochs=2)
    case = StreamCase(row, training, StreamOptions(**options), 5)
    return make_learner(with_inputs(case, stream))


def learned(row: Learner, stream: Stream, count: int) -> Learner:
    torch.manual_seed(0)
    for experience in stream.benchmark.train_stream[:count]:
        row.strategy.train(experience, eval_streams=[], reset_optimizer_state=True)
    return row


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def test_every_file_of_methods_declares_one() -> None:
    files = {Path(inspect.getfile(m.make)).stem for m in STREAM_METHODS.values()}
    folder = Path(inspect.getfile(STREAM_METHODS["naive"].make)).parent
    assert files == {file.stem for file in folder.glob("*.py")} - {"__init__"}
    groups = [STREAM_GROUPS.index(m.group) for m in STREAM_METHODS.values()]
    assert groups == sorted(groups)
    assert all(m.about and name == m.name for name, m in STREAM_METHODS.items())


@pytest.mark.parametrize("warm", [True, False])
def test_averages_leave_the_heads_of_earlier_tasks_alone(tasks: Stream, warm: bool) -> None:
    row = learner(tasks, "running-mean" if warm else "mean")
    before = weights(learned(row, tasks, 1).strategy.model)
    for experience in tasks.benchmark.train_stream[1:3]:
        row.strategy.train(experience, eval_streams=[])
    after = weights(row.strategy.model)
    head = "classifier.classifiers.0.classifier.weight"
    assert torch.equal(before[head], after[head])
    assert not torch.equal(before["model.features.0.weight"], after["model.features.0.weight"])


def test_what_is_kept_is_measured(split: Stream) -> None:
    n = sum(p.numel() for p in make_network(split, "mlp-16", 0).parameters())
    passed = sum(len(e.dataset) for e in split.benchmark.train_stream[:2])
    expected = {
        "naive": (0, 0, 0),
        "lwf": (0, 0, 0),
        "running-mean": (0, 0, 0),
        "mean": (FLOAT * n, 0, 0),
        "ewc": (2 * 2 * FLOAT * n, 0, passed),
        "si": (3 * FLOAT * n, 0, passed),
        "gem": (20 * (64 * FLOAT + 8), 20, 20),
        "replay-31": (31 * (64 * FLOAT + 8), 31, 31),
        "replay-bytes": (40 * 257, 40, 40),
        "der++": (50 * (74 * FLOAT + 8), 50, 50),
        "slda": (FLOAT * (16 * 16 + 10 * 16 + 10), 0, 0),
    }
    for name, (size, examples, labels) in expected.items():
        row = learner(
            split, name, memory_examples=(50, 31), ewc_lambda=10.0, si_lambda=10.0, lwf_alpha=1.0,
            memory_mb=0.01029,
        )  # fmt: skip
        kept = learned(row, split, 2).kept()
        assert (kept.bytes, kept.examples, kept.labels) == (size, examples, labels), name


@pytest.mark.parametrize(
    ("name", "option"), [("ewc", "ewc_lambda"), ("si", "si_lambda"), ("lwf", "lwf_alpha")]
)
def test_strengths_have_an_effect(split: Stream, name: str, option: str) -> None:
    weak, strong = (
        weights(learned(learner(split, name, **{option: strength}), split, 2).strategy.model)
        for strength in (1e-6, 10.0)
    )
    assert not torch.equal(weak["features.0.weight"], strong["features.0.weight"])


def test_the_learning_rate_falls_and_examples_are_counted(split: Stream) -> None:
    row = learner(split, "naive")
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
    row = learner(split, "replay-40", memory_examples=(40,))
    learned(row, split, 3)
    counts = [2 * len(e.dataset) for e in split.benchmark.train_stream[:3]]
    assert row.pace.examples[0] == counts[0]
    assert row.pace.examples[1:] == [
        c + 32 * steps for c, steps in zip(counts[1:], row.pace.steps[1:], strict=True)
    ]
    kept = set(row.strategy.plugins[0]._storage.buffer.targets)
    assert kept == {c for e in split.benchmark.train_stream[:3] for c in e.dataset.targets}


def test_a_row_has_its_own_learning_rate(split: Stream) -> None:
    row = learner(split, "naive", rates=("naive=0.03",))
    assert row.strategy.optimizer.param_groups[0]["lr"] == 0.03


@pytest.mark.parametrize("row", ["frozen", "slda", "randumb"])
def test_discriminants_leave_the_features_after_the_first_experience(
    split: Stream, row: str
) -> None:
    one = learned(learner(split, row, memory_mb=0.1), split, 1)
    before = {k: t.clone() for k, t in one.strategy.model.state_dict().items()}
    for experience in split.benchmark.train_stream[1:3]:
        one.strategy.train(experience, eval_streams=[])
    after = one.strategy.model.state_dict()
    changed = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    head = "1" if row == "randumb" else "classifier"
    assert changed == {f"{head}.weight", f"{head}.bias"}
    assert one.kept().bytes <= 100_000
    known = [accuracy(one.strategy.model, part) for part in split.test[:3]]
    assert sum(known) / 3 > 0.6


def test_quarter_turns_are_classes_of_their_own(tasks: Stream) -> None:
    network = make_network(tasks, "conv-4", 0)
    training = Training(network, rate=0.05, batch=32, epochs=1, turns=True)
    row = make_learner(StreamCase("naive", training, StreamOptions(), 5))
    turned = row.strategy.plugins[0]
    seen: list[int] = []
    step = row.strategy.optimizer_step
    row.strategy.optimizer_step = lambda: (
        seen.append(turned._turned.out_features), step(),
    )  # fmt: skip
    learned(row, tasks, 2)
    assert set(seen) == {4 * 2}  # heads of two classes
    assert len(row.strategy.optimizer.param_groups) == 1
    assert not any(m._forward_pre_hooks for m in row.strategy.model.modules())
    flat = learner(tasks, "naive")
    with pytest.raises(OptionError, match="square images, got inputs of shape"):
        flat.strategy.plugins.insert(0, type(turned)())
        flat.strategy.experience = Flat()
        flat.strategy.plugins[0].before_training_exp(flat.strategy)


class Flat:
    """Experience whose inputs are no images."""

    task_labels = (0,)

    @property
    def dataset(self) -> Any:
        class Data(list[tuple[Tensor, int]]):
            def eval(self) -> Data:
                return self

        return Data([(torch.zeros(4), 0), (torch.zeros(4), 1)])
