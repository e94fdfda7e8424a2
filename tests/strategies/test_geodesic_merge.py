"""``GeodesicMerge`` through Avalanche's own fixtures, and what they do not ask for."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("avalanche")

from avalanche.benchmarks.scenarios.online import split_online_stream
from avalanche.core import SupervisedPlugin
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.logging import TextLogger
from avalanche.models import IncrementalClassifier, MTSimpleMLP, SimpleMLP
from avalanche.training import Naive
from avalanche.training.plugins import (
    EarlyStoppingPlugin,
    EvaluationPlugin,
    EWCPlugin,
    LwFPlugin,
    ReplayPlugin,
)

from geomerge.errors import NumericalError, OptionError
from geomerge.strategies import (
    ContinualOptions,
    GeodesicMerge,
    GeodesicMergePlugin,
    MergeCSVLogger,
    maybe_load_checkpoint,
    merge_metrics,
    save_strategy,
)

ROOT = Path(__file__).parent.parent.parent

pytestmark = [
    pytest.mark.filterwarnings("ignore:No loggers specified:UserWarning"),
    pytest.mark.filterwarnings("ignore:Metric .* EarlyStopping:UserWarning"),
]
OPTIONS = ContinualOptions(epochs=2, pseudo_inputs=60, rank=4, batch=20, rehearsal=20)


def small(multi_task: bool = False, classes: int = 10) -> nn.Module:
    if multi_task:
        return MTSimpleMLP(input_size=6, hidden_size=10)
    return SimpleMLP(num_classes=classes, input_size=6, hidden_size=10)


class Growing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(6, 10), nn.BatchNorm1d(10), nn.ReLU())
        self.classifier = IncrementalClassifier(10, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.classifier(self.trunk(x))
        return out


def strategy(model: nn.Module, **changes: Any) -> GeodesicMerge:
    words: dict[str, Any] = {
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9),
        "options": OPTIONS, "train_mb_size": 20, "train_epochs": 2, "eval_mb_size": 50,
        "evaluator": EvaluationPlugin(
            accuracy_metrics(stream=True, experience=True), loggers=[TextLogger(io.StringIO())]
        ),
    }  # fmt: skip
    return GeodesicMerge(model=model, **(words | changes))


Benchmark = Callable[..., Any]


@pytest.fixture
def fast_benchmark(avalanche_tests: Any) -> Benchmark:
    make: Benchmark = avalanche_tests.benchmarks.get_fast_benchmark
    return make


PLUGINS: dict[str, Callable[[], list[Any]]] = {
    "alone": list,
    "replay": lambda: [ReplayPlugin(mem_size=20)],
    "ewc": lambda: [EWCPlugin(0.1)],
    "lwf": lambda: [LwFPlugin(1.0, 2.0)],
    "all": lambda: [ReplayPlugin(mem_size=20), EWCPlugin(0.1), LwFPlugin(1.0, 2.0)],
}


@pytest.mark.parametrize("multi_task", [False, True])
@pytest.mark.parametrize("beside", list(PLUGINS))
def test_avalanches_own_fixtures(avalanche_tests: Any, beside: str, multi_task: bool) -> None:
    fixtures = avalanche_tests.strategies.StrategyTest()
    fixtures.setUp()
    model, optimizer, criterion, benchmark = fixtures.init_scenario(multi_task=multi_task)
    mine = strategy(model, optimizer=optimizer, criterion=criterion, plugins=PLUGINS[beside]())
    avalanche_tests.utils.run_strategy(benchmark, mine)
    assert len(mine.merge_reports) == len(benchmark.train_stream) - 1


def test_constructor_arguments_are_checked_as_avalanche_does() -> None:
    with pytest.raises(TypeError):
        strategy(small(), trai_epochs=2)
    with pytest.raises(OptionError, match="unknown expert_init 'cold'"):
        strategy(small(), expert_init="cold")


@pytest.mark.parametrize("eval_every", [-1, 0, 1])
def test_the_last_evaluation_is_of_the_merged_network(
    fast_benchmark: Benchmark, eval_every: int
) -> None:
    torch.manual_seed(0)
    benchmark = fast_benchmark(seed=0)
    mine = strategy(small(), eval_every=eval_every)
    for experience in benchmark.train_stream:
        mine.train(experience, eval_streams=[benchmark.test_stream])
    logged = mine.evaluator.get_last_metrics()
    key = "Top1_Acc_Stream/eval_phase/test_stream/Task000"
    fresh = mine.eval(benchmark.test_stream)
    assert (logged[key] == fresh[key]) if eval_every >= 0 else key not in logged


def test_the_first_experience_is_naive_training(fast_benchmark: Benchmark) -> None:
    benchmark = fast_benchmark(seed=0)
    networks = []
    for make in (strategy, naive):
        torch.manual_seed(0)
        one = make(small())
        torch.manual_seed(1)
        one.train(benchmark.train_stream[0])
        networks.append(one.model.state_dict())
    for name, tensor in networks[0].items():
        assert torch.equal(tensor, networks[1][name])


def naive(model: nn.Module, **words: Any) -> Any:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    return Naive(
        model=model, optimizer=optimizer, train_mb_size=20, train_epochs=2, evaluator=None, **words
    )


def test_the_model_is_written_in_place_and_keeps_its_mode(fast_benchmark: Benchmark) -> None:
    benchmark = fast_benchmark(seed=0)
    model = small()
    mine = strategy(model)
    before = {name: p.data_ptr() for name, p in model.named_parameters()}
    for experience in benchmark.train_stream[:2]:
        mine.train(experience)
    assert {name: p.data_ptr() for name, p in model.named_parameters()} == before
    assert all(p.requires_grad for p in model.parameters())


def test_a_classifier_grows_and_batch_norm_follows_its_policy(fast_benchmark: Benchmark) -> None:
    benchmark = fast_benchmark(seed=0)
    means = {}
    for statistics in ("measured", "expert", "before"):
        torch.manual_seed(0)
        mine = strategy(
            Growing(), options=replace(OPTIONS, statistics=statistics), train_mb_size=25
        )
        before = trained = None

        class Watch(SupervisedPlugin):
            def after_training_epoch(self, other: Any, **_: Any) -> None:
                nonlocal trained
                trained = other.model.trunk[1].running_mean.clone()

        mine.plugins.insert(0, Watch())
        for experience in benchmark.train_stream[:3]:
            before = mine.model.trunk[1].running_mean.clone()
            mine.train(experience)
        found = mine.model.trunk[1].running_mean
        means[statistics] = found.clone()
        assert torch.equal(found, trained) == (statistics == "expert")
        assert torch.equal(found, before) == (statistics == "before")
        assert mine.model.trunk[1].num_batches_tracked.dtype == torch.int64
        assert mine.model.classifier.classifier.out_features >= 6
    assert not torch.equal(means["measured"], means["expert"])


def test_frozen_layers_stay(fast_benchmark: Benchmark) -> None:
    model = small()
    for p in model.features.parameters():
        p.requires_grad = False
    before = {k: p.clone() for k, p in model.state_dict().items()}
    mine = strategy(model)
    for experience in fast_benchmark(seed=0).train_stream[:3]:
        mine.train(experience)
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name]) == name.startswith("features"), name


def test_what_is_refused_is_refused_before_training(fast_benchmark: Benchmark) -> None:
    benchmark = fast_benchmark(seed=0)
    mine = strategy(small().double())
    with pytest.raises(OptionError, match="float32"):
        mine.train(benchmark.train_stream[0])
    assert mine.clock.train_iterations == 0


def test_a_metric_of_one_task(fast_benchmark: Benchmark) -> None:
    mine = strategy(small(), metric_tasks=1)
    for experience in fast_benchmark(seed=0).train_stream[:4]:
        mine.train(experience)
    assert len(mine.merge_reports) == 3


def test_old_heads_keep_their_function(fast_benchmark: Benchmark) -> None:
    torch.manual_seed(0)
    benchmark = fast_benchmark(use_task_labels=True, seed=0)
    mine = strategy(small(multi_task=True), train_epochs=10, options=replace(OPTIONS, epochs=4))
    mine.train(benchmark.train_stream[0])
    x = mine.memory[0].inputs()
    before = mine.model(x, 0).argmax(1)
    for experience in benchmark.train_stream[1:3]:
        mine.train(experience)
    assert (mine.model(x, 0).argmax(1) == before).float().mean() > 0.9


def test_online_streams_are_refused(fast_benchmark: Benchmark) -> None:
    benchmark = fast_benchmark(seed=0)
    online = split_online_stream(benchmark.train_stream, experience_size=10)
    with pytest.raises(OptionError, match=r"online learning would be .* give `merge_every`"):
        strategy(small()).train(next(iter(online)))


@pytest.mark.parametrize("kind", ["one head", "heads", "growing", "bounded"])
def test_a_run_goes_on_from_a_checkpoint_with_the_same_bits(
    fast_benchmark: Benchmark, tmp_path: Path, kind: str
) -> None:
    benchmark = fast_benchmark(use_task_labels=kind == "heads", seed=0)
    bounded = replace(OPTIONS, budget=0.05, memory_mb=0.02)

    def make() -> GeodesicMerge:
        torch.manual_seed(0)
        return strategy(
            Growing() if kind == "growing" else small(kind == "heads"),
            plugins=[ReplayPlugin(mem_size=20)], evaluator=None, train_mb_size=25,
            options=bounded if kind == "bounded" else OPTIONS,
            expert_init="first" if kind == "heads" else "warm",
        )  # fmt: skip

    whole = make()
    torch.manual_seed(1)
    for experience in benchmark.train_stream[:4]:
        whole.train(experience)

    interrupted = make()
    torch.manual_seed(1)
    for experience in benchmark.train_stream[:2]:
        interrupted.train(experience)
    save_strategy(interrupted, tmp_path / "two.pt")
    torch.manual_seed(99)
    resumed, done = maybe_load_checkpoint(make(), tmp_path / "two.pt")
    assert done == 2
    for experience in benchmark.train_stream[done:4]:
        resumed.train(experience)
    for (name, one), two in zip(
        whole.model.state_dict().items(), resumed.model.state_dict().values(), strict=True
    ):
        assert torch.equal(one, two), name
    assert [r.path for r in whole.merge_reports] == [r.path for r in resumed.merge_reports]
    assert [p.name for p in tmp_path.iterdir()] == ["two.pt"]


def test_metrics_reach_the_loggers(fast_benchmark: Benchmark, tmp_path: Path) -> None:
    text = io.StringIO()
    table = MergeCSVLogger(tmp_path)
    evaluator = EvaluationPlugin(
        accuracy_metrics(stream=True, experience=True), *merge_metrics(),
        loggers=[TextLogger(text), table],
    )  # fmt: skip
    benchmark = fast_benchmark(seed=0)
    mine = strategy(small(), evaluator=evaluator)
    for experience in benchmark.train_stream[:3]:
        mine.train(experience)
    mine.eval(benchmark.test_stream)  # the text logger prints what has come since the last epoch
    found = mine.evaluator.get_last_metrics()
    report = mine.merge_reports[-1]
    assert found["Merge_PathLength/train_phase/train_stream"] == report.pick.length
    assert found["Merge_Drift/train_phase/train_stream"] == max(report.pick.drift.values())
    assert found["Merge_WorstDrop/train_phase/train_stream"] == max(report.pick.changed.values())
    mine.eval(benchmark.test_stream)  # the text logger prints what has come since the last epoch
    printed = f"Merge_PathLength/train_phase/train_stream = {report.pick.length:.4f}"
    assert printed in text.getvalue()
    rows = (tmp_path / "merge_results.csv").read_text().splitlines()
    assert len(rows) == 1 + 2 * len(merge_metrics())  # no merge in the first experience
    assert f"2,Merge_PathLength,{report.pick.length}" in rows
    table.close()


def test_the_plugin_merges_beside_any_strategy(fast_benchmark: Benchmark) -> None:
    benchmark = fast_benchmark(seed=0)
    networks = []
    for build in (
        lambda model: strategy(model),
        lambda model: naive(model, plugins=[GeodesicMergePlugin(OPTIONS)]),
    ):
        torch.manual_seed(0)
        one = build(small())
        torch.manual_seed(1)
        for experience in benchmark.train_stream[:3]:
            one.train(experience, reset_optimizer_state=True)
        networks.append(one.model.state_dict())
    for name, tensor in networks[0].items():
        assert torch.equal(tensor, networks[1][name]), name


def test_early_stopping_and_first_weights(fast_benchmark: Benchmark) -> None:
    benchmark = fast_benchmark(seed=0)
    stop = EarlyStoppingPlugin(1, "train_stream", "Top1_Acc_Stream")
    mine = strategy(small(), plugins=[stop], eval_every=1, expert_init="first")
    for experience in benchmark.train_stream[:3]:
        mine.train(experience, eval_streams=[benchmark.train_stream])
    assert len(mine.merge_reports) == 2


def test_memory_is_bounded(fast_benchmark: Benchmark) -> None:
    benchmark = fast_benchmark(seed=0)
    options = replace(OPTIONS, pseudo_inputs=400)
    free = strategy(small(), options=options)
    for experience in benchmark.train_stream:
        free.train(experience)
    limit = free.memory_bytes * 2 // 3
    bound = strategy(small(), options=replace(options, memory_mb=limit / 1e6))
    for experience in benchmark.train_stream:
        bound.train(experience)
        assert bound.memory_bytes <= limit
    report = bound.merge_reports[-1]
    assert sum(report.memory.values()) == bound.memory_bytes
    assert sum(report.stored.values()) == bound.memory_bytes
    assert set(report.stored) == {"metric", "moments", "outputs"}


def test_an_expert_that_diverged_is_refused(fast_benchmark: Benchmark) -> None:
    model = small()
    mine = strategy(model, optimizer=torch.optim.SGD(model.parameters(), lr=1e30))
    with pytest.raises(NumericalError, match="smaller learning rate"):
        mine.train(fast_benchmark(seed=0).train_stream[0])


def test_options_given_apart() -> None:
    mine = strategy(small(), memory=7, labels=True, metric_tasks="new", epochs=1)
    assert mine.merger.options == replace(
        OPTIONS, examples=7, labels=True, metric_tasks="new", epochs=1
    )
    plugin = GeodesicMergePlugin(OPTIONS, memory="sketch")
    assert plugin.merger.options == replace(OPTIONS, examples=0)
    with pytest.raises(TypeError, match="takes no 'epoch'"):
        GeodesicMergePlugin(OPTIONS, epoch=1)
    with pytest.raises(OptionError, match="unknown memory 'sketches'"):
        GeodesicMergePlugin(memory="sketches")
    with pytest.raises(OptionError, match="`examples` to be 0 or more, got -1"):
        strategy(small(), memory=-1)


def test_earlier_keywords_still_work() -> None:
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with pytest.warns(DeprecationWarning, match="`settings` is called `options`"):
        mine = GeodesicMerge(model=model, optimizer=optimizer, settings=OPTIONS)
    assert mine.merger.options == OPTIONS
    with pytest.warns(DeprecationWarning, match="`manifold` is called `metric_tasks`"):
        assert GeodesicMergePlugin(OPTIONS, manifold="new").merger.options.metric_tasks == "new"


@pytest.mark.parametrize("multi_task", [False, True])
@pytest.mark.parametrize("memory", ["sketch", 5])
@pytest.mark.parametrize("labels", [False, True])
def test_all_ways_to_remember(
    fast_benchmark: Benchmark, multi_task: bool, memory: str | int, labels: bool
) -> None:
    benchmark = fast_benchmark(use_task_labels=multi_task, seed=0)
    mine = strategy(
        small(multi_task), memory=memory, labels=labels, options=replace(OPTIONS, budget=0.5)
    )
    for experience in benchmark.train_stream[:3]:
        mine.train(experience)
    report = mine.merge_reports[-1]
    assert report.used["kept_inputs"] == (0 if memory == "sketch" else 10)
    assert (report.used["labels"] > 0) == labels
    assert set(report.pick.drift) == {"task 0", "task 1"}


def test_the_example_of_the_readme_runs(fast_benchmark: Benchmark) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    (code,) = (block for block in blocks if "GeodesicMerge" in block)
    model = small()
    names = {
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.05),
        "benchmark": fast_benchmark(seed=0),
    }
    exec(code, names)
    assert len(names["strategy"].merge_reports) == 4
