"""Laws of passes that memory has no room for, with modules that fail above some batch size."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from process_groups import run
from torch import Tensor, nn

from geomerge import Network
from geomerge.data.batchnorm import batch_statistics
from geomerge.errors import AssumptionWarning, OptionError
from geomerge.metrics import measure_metric
from geomerge.processes import together
from geomerge.walks.objectives import divergence

CPU = (
    "[enforce fail at alloc_cpu.cpp:121] data. DefaultCPUAllocator: can't allocate memory: you "
    "tried to allocate 4000000000 bytes. Error code 12 (Cannot allocate memory)"
)
WINDOWS = "[enforce fail at alloc_cpu.cpp:121] data. DefaultCPUAllocator: not enough memory: you"


class _Full(torch.autograd.Function):
    """Identity whose backward pass has no room for more inputs than some number."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, most: int) -> Tensor:
        ctx.most = most
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, d: Tensor) -> tuple[Tensor, None]:
        if len(d) > ctx.most:
            raise RuntimeError(CPU)
        return d, None


class Tight(nn.Module):
    """Layer for whose passes there is only room with few inputs."""

    def __init__(self, forwards: int, backwards: int, error: Exception) -> None:
        super().__init__()
        self.forwards, self.backwards, self.error = forwards, backwards, error
        self.seen: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(len(x))
        if len(x) > self.forwards:
            raise self.error
        found: Tensor = _Full.apply(x, self.backwards)
        return found


def made(
    forwards: int = sys.maxsize, backwards: int = sys.maxsize, error: Exception | None = None
) -> Network:
    torch.manual_seed(0)
    tight = Tight(forwards, backwards, error or RuntimeError(CPU))
    net = nn.Sequential(
        nn.Linear(6, 9), nn.BatchNorm1d(9), nn.Tanh(), tight, nn.Linear(9, 4)
    ).double()
    return Network(net)


def inputs(count: int = 23) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 6, generator=generator, dtype=torch.float64)


def results(network: Network) -> list[Tensor]:
    x, w = inputs(), network.initial
    targets = inputs()[:, :4].log_softmax(1)
    loss, gradient = network.gradient(w, x, divergence(targets))
    metric = measure_metric(network, w, x)
    v = torch.linspace(-1, 1, network.n, dtype=torch.float64)
    return [network.logits(w, x), torch.tensor(loss), gradient, metric.mv(v)]


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError(CPU), RuntimeError(WINDOWS)],
)
@pytest.mark.parametrize("where", ["forwards", "backwards"])
def test_halved_passes_give_what_smaller_ones_give_from_the_start(
    where: str, error: Exception
) -> None:
    network = made(**{where: 3}, error=error)
    with pytest.warns(AssumptionWarning, match="of 23 inputs: it was repeated with 2 at"):
        found = results(network)
    assert network.room.most == 2
    smaller = results(made().limited(2))
    for one, other, whole in zip(found, smaller, results(made()), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(one, whole, rtol=1e-10, atol=1e-12)


def test_later_passes_begin_with_what_there_was_room_for_and_say_nothing() -> None:
    network = made(forwards=6)
    view = network.head_view(slice(0, 2))
    with pytest.warns(AssumptionWarning):
        network.logits(network.initial, inputs())
    tight = network.module[3]
    tight.seen.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        view.logits(network.initial, inputs())
    assert max(tight.seen) == 5


def test_a_metric_is_measured_anew_from_the_largest_pass_that_was_made() -> None:
    network, w, x = made(backwards=9), made().initial, inputs()
    with pytest.warns(AssumptionWarning, match="a pass of 23 inputs: it was repeated with 5"):
        found = measure_metric(network, w, x)
    assert network.module[3].seen.count(23) == 1
    v = torch.linspace(-1, 1, network.n, dtype=torch.float64)
    assert torch.equal(found.mv(v), measure_metric(made().limited(5), w, x).mv(v))


def test_one_input_without_room_ends_with_a_sentence() -> None:
    network = made(forwards=0)
    for compute in (
        lambda: network.logits(network.initial, inputs()),
        lambda: network.gradient(network.initial, inputs(), torch.sum),
    ):
        with pytest.raises(OptionError, match="one input, got none for 4000000000 bytes"):
            compute()


def test_other_errors_are_not_repeated() -> None:
    network = made(forwards=3, error=RuntimeError("size mismatch"))
    with pytest.raises(RuntimeError, match="size mismatch"):
        network.logits(network.initial, inputs())
    assert network.module[3].seen == [23]


def test_statistics_of_a_batch_are_not_halved() -> None:
    network = made(backwards=3)
    with (
        batch_statistics(network),
        pytest.raises(OptionError, match="a pass of 23 inputs, whose BatchNorm"),
    ):
        network.gradient(network.initial, inputs(), torch.sum)
    assert network.room.most is None


def _measured(rank: int) -> Tensor:
    network = made(forwards=7) if rank == 1 else made()  # only there is no room
    with together(), warnings.catch_warnings():
        warnings.simplefilter("ignore", AssumptionWarning)
        metric = measure_metric(network, network.initial, inputs(200))
    return metric.mv(torch.linspace(-1, 1, network.n, dtype=torch.float64))


@pytest.mark.slow  # two processes
def test_one_of_several_processes_may_have_less_room(tmp_path: Path) -> None:
    wanted = _measured(0)
    for found in run(_measured, 2, tmp_path):
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)
