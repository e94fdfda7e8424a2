"""Every usual kind of layer is measured in the same passes, and agrees with the dense metric."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from geomerge import Network
from geomerge.metrics.kronecker.coverage import find_coverage
from geomerge.metrics.kronecker.estimate import estimate_kronecker
from geomerge.metrics.kronecker.tracing import Tracer
from geomerge.networks.batches import Batch
from geomerge.testing import dense_kronecker, dense_metric


class Rows(nn.Module):
    """Layers on tokens (B, 4, 6), then the mean over tokens and a head."""

    def __init__(self, width: int = 6, **layers: nn.Module | nn.Parameter) -> None:
        super().__init__()
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.head = nn.Linear(width, 3)

    def mix(self, x: Tensor) -> Tensor:
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.mix(x).tanh().mean(1))


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape))


class Rms(Rows):
    """RMSNorm as in Llama, then as in Gemma."""

    def mix(self, x: Tensor) -> Tensor:
        for scale in (self.scale, 1.0 + self.other.double()):
            norm = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)
            x = scale * norm.to(x.dtype)
        return x


class Scaled(Rows):
    def mix(self, x: Tensor) -> Tensor:
        x = x + self.scale * x.tanh() - self.shift
        x += self.positions[:4]
        return (2 - x / self.divisor).mul_(self.scale)


class Windows(Rows):
    """Attention in windows of two tokens with a table of relative positions, as in Swin."""

    def mix(self, x: Tensor) -> Tensor:
        windows = x.view(-1, 2, 6)
        index = torch.tensor([[1, 2], [0, 1]]).reshape(-1)
        bias = self.table[index].view(2, 2, 2).permute(2, 0, 1).contiguous().unsqueeze(0)
        q = self.q(windows).view(-1, 2, 2, 3).transpose(1, 2)
        scores = q @ q.transpose(2, 3) + bias
        return (scores.softmax(-1) @ q).transpose(1, 2).reshape(-1, 4, 6)


class Buckets(Rows):
    """Relative positions through an embedding, as in T5, given to the fused attention."""

    def mix(self, x: Tensor) -> Tensor:
        places = torch.arange(4)
        bias = self.table((places[:, None] - places[None, :]).abs()).permute(2, 0, 1).unsqueeze(0)
        q = x.view(-1, 4, 2, 3).transpose(1, 2)
        out = functional.scaled_dot_product_attention(q, q, q, attn_mask=bias)
        return out.transpose(1, 2).reshape(-1, 4, 6)


class Gpt(Rows):
    """Projections with weights (d_in, d_out)."""

    def mix(self, x: Tensor) -> Tensor:
        y = torch.addmm(self.bias, x.view(-1, 6), self.weight).view(x.shape)
        return (y.tanh() @ self.plain).tanh() @ self.turned.T


class Tokens(nn.Module):
    """Words, places and types of tokens; the last layer is tied to the words."""

    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.words = nn.Embedding(7, 4)
        self.places = nn.Embedding(6, 4)
        self.types = nn.Embedding(2, 4)
        self.norm = nn.LayerNorm(4)
        self.last = nn.Linear(4, 7, bias=False)
        if tied:
            self.last.weight = self.words.weight

    def forward(self, x: Tensor) -> Tensor:
        y = self.words(x)
        y = y + self.types(torch.zeros_like(x))
        y += self.places(torch.arange(x.shape[1]).unsqueeze(0))
        return self.last((self.norm(y) + self.words(x.flip(1))).tanh().mean(1))


class Others(Rows):
    def mix(self, x: Tensor) -> Tensor:
        y = torch.einsum("btc,cd->btd", self.act(x), self.mixed)
        return self.pair(y, x) + functional.linear(x, self.left @ self.right)


class Recurrent(nn.Module):
    def __init__(self, layer: nn.Module, width: int) -> None:
        super().__init__()
        self.layer = layer
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x)[0].mean(1))


class Cells(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru, self.lstm, self.rnn = nn.GRUCell(6, 5), nn.LSTMCell(5, 4), nn.RNNCell(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.gru(x[:, 0])
        return self.rnn(self.lstm(self.gru(x[:, 1], h))[0])


def convolutional(*layers: nn.Module, width: int) -> nn.Module:
    return nn.Sequential(*layers, nn.Tanh(), nn.Flatten(), nn.Linear(width, 3))


def tokens(count: int) -> Tensor:
    return torch.randint(0, 7, (count, 5))


def floats(*shape: int) -> Callable[[int], Tensor]:
    return lambda count: torch.randn(count, *shape, dtype=torch.float64)


KINDS: dict[str, tuple[Callable[[], nn.Module], Callable[[int], Batch]]] = {
    "depthwise": (
        lambda: convolutional(
            nn.Conv2d(4, 4, 3, stride=2, padding=1, groups=4),
            nn.Tanh(),
            nn.Conv2d(4, 8, (3, 1), padding="same", groups=4),
            width=72,
        ),
        floats(4, 5, 5),
    ),
    "grouped": (
        lambda: convolutional(nn.Conv2d(4, 6, 2, groups=2), width=24), floats(4, 3, 3),
    ),
    "one dimension": (
        lambda: convolutional(
            nn.Conv1d(3, 4, 3, padding=1, stride=2), nn.Tanh(), nn.Conv1d(4, 4, 3, groups=4),
            width=4,
        ),
        floats(3, 6),
    ),
    "three dimensions": (
        lambda: convolutional(nn.Conv3d(2, 3, (1, 3, 1), padding="same"), width=24),
        floats(2, 2, 2, 2),
    ),
    "transposed": (
        lambda: convolutional(
            nn.ConvTranspose2d(3, 2, 3, stride=2, padding=1, output_padding=1),
            nn.ConvTranspose2d(2, 2, 2, groups=2),
            width=50,
        ),
        floats(3, 2, 2),
    ),
    "rms": (lambda: Rms(scale=parameter(6), other=parameter(6)), floats(4, 6)),
    "scaled": (
        lambda: Scaled(
            scale=parameter(6), shift=parameter(4, 1), positions=parameter(9, 6),
            divisor=parameter(1),
        ),
        floats(4, 6),
    ),
    "windows": (lambda: Windows(table=parameter(3, 2), q=nn.Linear(6, 6)), floats(4, 6)),
    "buckets": (lambda: Buckets(table=nn.Embedding(4, 2)), floats(4, 6)),
    "gpt": (
        lambda: Gpt(
            weight=parameter(6, 6), bias=parameter(6), plain=parameter(6, 5),
            turned=parameter(6, 5),
        ),
        floats(4, 6),
    ),
    "tokens": (lambda: Tokens(False), tokens),
    "tied": (lambda: Tokens(True), tokens),
    "others": (
        lambda: Others(
            act=nn.PReLU(), mixed=parameter(6, 5), pair=nn.Bilinear(5, 6, 6),
            left=parameter(6, 2), right=parameter(2, 6),
        ),
        floats(4, 6),
    ),
    "weight norm": (
        lambda: nn.utils.parametrizations.weight_norm(nn.Linear(6, 3)), floats(6),
    ),
    "gru": (
        lambda: Recurrent(nn.GRU(6, 3, 2, batch_first=True, bidirectional=True), 6), floats(4, 6),
    ),
    "lstm": (lambda: Recurrent(nn.LSTM(6, 5, batch_first=True, proj_size=2), 2), floats(4, 6)),
    "rnn": (lambda: Recurrent(nn.RNN(6, 5, 2, nonlinearity="relu"), 5), floats(4, 6)),
    "cells": (Cells, floats(2, 6)),
}  # fmt: skip


def made(name: str) -> tuple[Network, Batch]:
    make, draw = KINDS[name]
    torch.manual_seed(0)
    network = Network(make().double())
    return network, draw(6)


@pytest.mark.parametrize("name", KINDS)
def test_nothing_is_differentiated_input_by_input(name: str) -> None:
    network, x = made(name)
    found = find_coverage(network, network.initial, x[:1])
    assert found.one_by_one == []
    assert found.copied == []


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # of the dense metric
@pytest.mark.parametrize("name", KINDS)
def test_what_no_block_covers_has_the_exact_diagonal(name: str) -> None:
    network, x = made(name)
    metric = estimate_kronecker(
        network, network.initial, [x[:4], x[4:]], "hellinger", sign_vectors=None
    )
    truth = dense_metric(network, network.initial, x, "hellinger").diagonal()
    at = [torch.arange(network.n)[place] for place in metric.rest]
    at = torch.cat(at) if at else torch.zeros(0, dtype=torch.int64)
    torch.testing.assert_close(metric.diagonal, truth[at], rtol=1e-9, atol=1e-14)


ONE_ROW: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "grouped": (lambda: convolutional(nn.Conv2d(4, 6, 2, groups=2), width=6), (4, 2, 2)),
    "one dimension": (lambda: convolutional(nn.Conv1d(3, 4, 3), width=4), (3, 3)),
    "three dimensions": (lambda: convolutional(nn.Conv3d(2, 3, 2), width=3), (2, 2, 2, 2)),
    "transposed": (
        lambda: convolutional(nn.ConvTranspose2d(4, 6, 2, padding=1, stride=3, groups=2), width=0),
        (4, 1, 1),
    ),
    "transposed, whole": (
        lambda: convolutional(nn.ConvTranspose1d(3, 2, 3, bias=False), width=6), (3, 1),
    ),
    "gpt": (
        lambda: Gpt(
            weight=parameter(6, 6), bias=parameter(6), plain=parameter(6, 5),
            turned=parameter(6, 5),
        ),
        (1, 6),
    ),
    "gru": (lambda: Recurrent(nn.GRU(6, 5, batch_first=True), 5), (1, 6)),
    "lstm": (lambda: Recurrent(nn.LSTM(6, 5, batch_first=True), 5), (1, 6)),
}  # fmt: skip


@pytest.mark.parametrize("name", [name for name in ONE_ROW if name != "transposed"])
def test_blocks_are_exact_for_one_input_of_one_position(name: str) -> None:
    make, shape = ONE_ROW[name]
    torch.manual_seed(0)
    network = Network(make().double())
    x = torch.randn(1, *shape, dtype=torch.float64)
    metric = estimate_kronecker(network, network.initial, [x], sign_vectors=None)
    truth = dense_metric(network, network.initial, x, "hellinger")
    got = dense_kronecker(metric)
    assert metric.layers
    for layer in metric.layers:
        at = layer.matrix(torch.arange(network.n)).reshape(-1)
        torch.testing.assert_close(got[at][:, at], truth[at][:, at], rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("name", ["gru", "lstm", "rnn", "cells"])
def test_recurrent_layers_step_by_step_are_the_fused_ones(name: str) -> None:
    network, x = made(name)

    class Nothing:
        def product(self, *_: object) -> bool:
            return True

        def local(self, *_: object) -> None:
            return None

    with Tracer(network, network.initial, [x], Nothing()):  # type: ignore[arg-type]
        stepped = network.outputs(network.initial, x)
    torch.testing.assert_close(stepped, network.outputs(network.initial, x))


def test_a_mean_over_inputs_does_not_depend_on_batches() -> None:
    for name in ("windows", "tied", "depthwise"):
        network, x = made(name)
        one = estimate_kronecker(network, network.initial, [x])
        two = estimate_kronecker(network, network.initial, [x[:1], x[1:]])
        v = torch.randn(network.n, dtype=torch.float64)
        torch.testing.assert_close(one.mv(v), two.mv(v))


class Scripted(nn.Module):
    """A norm whose weights no trace of functions sees."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.unused = parameter(4), parameter(3)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(Hidden.apply(x, self.scale).tanh())


class Hidden(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, scale: Tensor) -> Tensor:
        return x * scale

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, d: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[no-untyped-def]
        x, scale = ctx.saved_tensors
        return d * scale, (d * x).sum_to_size(scale.shape)


def test_weights_that_no_trace_sees_are_differentiated_input_by_input() -> None:
    torch.manual_seed(0)
    network, x = Network(Scripted().double()), torch.randn(6, 4, dtype=torch.float64)
    found = find_coverage(network, network.initial, x[:1])
    assert found.one_by_one + found.copied == ["scale"]
    metric = estimate_kronecker(network, network.initial, [x], sign_vectors=None)
    truth = dense_metric(network, network.initial, x, "hellinger").diagonal()[:7]
    torch.testing.assert_close(metric.diagonal, truth, rtol=1e-9, atol=1e-14)
    assert not metric.diagonal[4:].any()  # what is not used at all
