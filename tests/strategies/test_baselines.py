"""Baselines that Avalanche lacks: averages of weights."""

from __future__ import annotations

import copy

import pytest
import torch
from avalanche.training.supervised import Naive
from torch import Tensor, nn

from geomerge.strategies.baselines import AveragedWeights
from geomerge.strategies.networks import make_network
from geomerge.strategies.options import StreamOptions
from geomerge.strategies.streams import Stream, make_stream

FLOAT = 4

pytestmark = pytest.mark.filterwarnings("ignore:No loggers specified")


@pytest.fixture(scope="module")
def split() -> Stream:
    return make_stream(StreamOptions("split-digits"))


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in module.named_parameters()}


@pytest.mark.parametrize("warm", [True, False])
def test_averages_are_what_their_names_say(split: Stream, warm: bool) -> None:
    model = make_network(split, "mlp-16", 0)
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


def test_the_evaluation_after_training_sees_the_mean(split: Stream) -> None:
    model = make_network(split, "mlp-16", 0)
    strategy = AveragedWeights(
        model=model, optimizer=torch.optim.SGD(model.parameters(), 0.5), evaluator=None,
        train_mb_size=32, eval_every=1,
    )  # fmt: skip
    (periodic,) = [p for p in strategy.plugins if type(p).__name__ == "PeriodicEval"]
    strategy.train(split.benchmark.train_stream[0])
    assert periodic.do_final
