"""Linear discriminants of class statistics on features that do not move."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from geomerge.continual.memory_limit import limit_bytes
from geomerge.continual.options import ContinualOptions
from geomerge.errors import OptionError
from geomerge.strategies.learner import KeptMemory, Learner, Training, make_strategy
from geomerge.strategies.registry import StreamCase, stream_method

if TYPE_CHECKING:
    from geomerge.strategies.options import StreamOptions

__all__ = ["frozen", "randumb", "slda"]

_HALF = 2  # bytes of a number
_COVARIANCE = 0.9  # share of the bytes of random features that is the covariance's


def _one_head(name: str) -> Callable[[StreamOptions], tuple[str, ...]]:
    return lambda options: () if options.protocol == "task" else (name,)


@stream_method(
    "frozen", "statistics", "linear discriminant on features of the first experience, frozen"
)
def frozen(case: StreamCase) -> Learner:
    """Return the features of the first experience for ever, with a discriminant on them."""
    about = "features of the first experience, frozen, and the discriminant of class statistics"
    walk, epochs = case.options.walk, case.training.epochs
    views = walk.views or "none"
    return _discriminant(case, case.training, about, walk.memory_mb, epochs, views)


@stream_method(
    "randumb",
    "statistics",
    "linear discriminant on random Fourier features (Prabhu et al., NeurIPS 2024)",
    rows=_one_head("randumb"),
)
def randumb(case: StreamCase) -> Learner:
    """Return a discriminant on as many random features as fit into the bytes that ours may keep."""
    limit = stored_bytes(case)
    count = max(16, math.isqrt(int(_COVARIANCE * limit / _HALF)))
    size, outputs = torch.Size(case.shape).numel(), _outputs(case.training.model)
    model = nn.Sequential(
        FourierFeatures(size, count, case.options.seed), nn.Linear(count, outputs)
    )
    about = f"discriminant on {count} random Fourier features of the inputs; nothing is trained"
    training = replace(case.training, model=model, turns=False)
    return _discriminant(case, training, about, limit / 1e6, 0)


@stream_method(
    "slda",
    "statistics",
    "deep streaming discriminant (Hayes and Kanan, CVPR workshops 2020)",
    rows=_one_head("slda"),
)
def slda(case: StreamCase) -> Learner:
    """Return Avalanche's streaming discriminant on the features of the first experience."""
    from geomerge.strategies.avalanche import Naive
    from geomerge.strategies.streaming_discriminant import StreamingDiscriminant

    plugin = StreamingDiscriminant(_outputs(case.training.model))
    strategy, pace = make_strategy(
        case.training, Naive, plugin, epochs=_first_only(case.training.epochs)
    )
    about = "streaming discriminant on the features of the first experience, shrinkage 1e-4"
    return Learner(strategy, pace, about, lambda: KeptMemory(plugin.kept_bytes))


def _discriminant(
    case: StreamCase,
    training: Training,
    about: str,
    memory_mb: float | None,
    epochs: int,
    views: str = "none",
) -> Learner:
    """Return a discriminant on features that no further experience trains."""
    from geomerge.strategies.geodesic_merge import GeodesicMerge

    options = ContinualOptions(
        head="discriminant", moving=0.0, seed=case.options.seed, memory_mb=memory_mb, views=views
    )
    strategy, pace = make_strategy(
        training, GeodesicMerge, options=options, epochs=_first_only(epochs)
    )
    return Learner(strategy, pace, about, lambda: KeptMemory(int(strategy.memory_bytes)))


def stored_bytes(case: StreamCase) -> int:
    """Return the number of bytes that geomerge may store beside the network."""
    network = sum(t.nbytes for t in case.training.model.parameters())
    return limit_bytes(case.options.walk.memory_mb, network)


def _first_only(epochs: int) -> Callable[[Any], int]:
    """Return the function that trains the first experience and no other."""
    return lambda strategy: epochs if strategy.clock.train_exp_counter == 0 else 0


def _outputs(model: nn.Module) -> int:
    layers = [m for m in model.modules() if isinstance(m, nn.Linear)]
    if not layers:
        raise OptionError(
            "the network has no linear layer at its end, expected one; leave this row out "
            "with `skip`"
        )
    return layers[-1].out_features


class FourierFeatures(nn.Module):
    """Random Fourier features of the Gaussian kernel (Rahimi and Recht, NeurIPS 2007).

    Matrix and phases follow from the seed, so nothing of them has to be kept.

    Args:
        size: Number of entries of an input, about of unit variance.
        count: Number of features.
        seed: Seed.
    """

    matrix: torch.Tensor
    phases: torch.Tensor

    def __init__(self, size: int, count: int, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        # The kernel's width is the usual distance of two inputs, sqrt(2 size).
        drawn = torch.randn(count, size, generator=generator) * size**-0.5
        self.register_buffer("matrix", drawn)
        self.register_buffer("phases", 2 * math.pi * torch.rand(count, generator=generator))

    def forward(self, x: Any) -> torch.Tensor:
        """Return the features of a batch, shape (B, count)."""
        return (nn.functional.linear(x.flatten(1), self.matrix) + self.phases).cos()
