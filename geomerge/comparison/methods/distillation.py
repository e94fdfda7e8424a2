"""Two-teacher distillation (Hinton, Vinyals & Dean 2015) from where the joint walk starts."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

from torch import Tensor

from geomerge.comparison.context import Context, NotApplicableError
from geomerge.comparison.methods.walks import walk_and_pick
from geomerge.comparison.registry import MethodResult, method
from geomerge.errors import NumericalError
from geomerge.merging.joint_training import round_samples
from geomerge.merging.presets.joint import EUCLIDEAN_RATE
from geomerge.options import replace_options

RATES = tuple(EUCLIDEAN_RATE * factor for factor in (0.25, 1.0, 4.0))
_TRIAL = 0.1  # share of the samples for a trial of each learning rate
_STORED = 8  # points of a trial, the fewest: picking among more takes as long as walking


@method(
    "distillation",
    "training",
    "from the joint walk's start toward both networks' outputs, no labels but for picks",
)
def distillation(context: Context) -> MethodResult:
    """Do the joint walk with g = I, at a learning rate chosen by short trials."""
    context.inputs(context.a, context.b)
    each = round_samples(context.space)
    trial = int(_TRIAL * context.max_samples / each)
    rest = context.max_samples // each - trial * len(RATES)
    if trial < 1:
        raise NotApplicableError(
            f"needs {round(each / _TRIAL)} samples, got {context.max_samples}; give more as "
            "`max_samples`"
        )
    options = replace_options(
        context.options, preset="joint", metric="euclidean", damping=None, learn=None, budget=None
    )

    def walk(rate: float, steps: int, **stored: int) -> MethodResult:
        walked = replace_options(options, learning_rate=rate, steps=steps, **stored)
        return walk_and_pick(context, walked, f"distillation at {rate:g} ")

    trials: dict[float, MethodResult] = {}
    for rate in RATES:
        with suppress(NumericalError):  # the learning rate is too large for this network
            trials[rate] = walk(rate, trial, points=_STORED)
    if not trials:
        listed = " and ".join(map(str, RATES))
        raise NumericalError(
            f"distillation diverged at every learning rate of {listed}, expected a finite loss at "
            "one"
        )
    weights = [short.answer for short in trials.values() if isinstance(short.answer, Tensor)]
    best, _ = context.pick(len(weights), weights.__getitem__)
    rate = list(trials)[best]
    result = walk(rate, rest)
    return replace(
        result,
        curve=(),
        samples=result.samples + sum(short.samples for short in trials.values()),
        chosen={"rate": rate},
    )
