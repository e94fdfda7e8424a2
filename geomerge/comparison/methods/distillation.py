"""Two-teacher distillation (Hinton, Vinyals & Dean 2015) from the mean of the networks."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

from torch import Tensor

from geomerge.comparison.context import Context, NotApplicableError
from geomerge.comparison.registry import MethodResult, method
from geomerge.comparison.walking import walk_and_pick
from geomerge.errors import NumericalError
from geomerge.merging.joint import round_samples
from geomerge.merging.walks import EUCLIDEAN_RATES

RATES = tuple(EUCLIDEAN_RATES["joint"] * factor for factor in (0.25, 1.0, 4.0))
_TRIAL = 0.1  # share of the budget for which each is tried


@method("distillation", "training", "from the mean toward both networks' outputs, without labels")
def distillation(context: Context) -> MethodResult:
    """Walk as the joint walk does, with g = I, at the learning rate that a short trial picks."""
    context.inputs(context.a, context.b)
    each = round_samples(context.sides)
    trial = int(_TRIAL * context.budget / each)
    rest = context.budget // each - trial * len(RATES)
    if trial < 1:
        raise NotApplicableError(
            f"needs a budget of {round(each / _TRIAL)} samples, got {context.budget}; give more "
            "with --budget"
        )
    options = replace(
        context.options, preset="joint", metric="euclidean", damping=None, learn=None, budget=()
    )

    def walk(rate: float, steps: int) -> MethodResult:
        title = f"distillation at {rate:g} "
        return walk_and_pick(context, replace(options, learning_rate=rate, steps=steps), title)

    tried: dict[float, MethodResult] = {}
    for rate in RATES:
        with suppress(NumericalError):  # too large a rate for this network
            tried[rate] = walk(rate, trial)
    if not tried:
        raise NumericalError(f"distillation diverged at every rate of {RATES}")
    weights = [found.answer for found in tried.values() if isinstance(found.answer, Tensor)]
    best, _ = context.pick(len(weights), weights.__getitem__)
    rate = list(tried)[best]
    found = walk(rate, rest)
    return replace(
        found,
        curve=(),
        samples=found.samples + sum(short.samples for short in tried.values()),
        chosen={"rate": rate},
    )
