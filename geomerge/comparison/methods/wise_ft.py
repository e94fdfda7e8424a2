"""Fine-tuning and the line back (WiSE-FT, Wortsman et al. 2022)."""

from __future__ import annotations

from torch import Tensor

from geomerge.comparison.context import Context
from geomerge.comparison.descent import RATE, fine_tuned
from geomerge.comparison.registry import MethodResult, method
from geomerge.errors import NumericalError

RATES = (RATE / 4, RATE, 4 * RATE)
_TRIAL = 0.1  # share of the budget for which each is tried


@method("wise-ft", "training", "b fine-tuned on a's labels, best point of the line back to b")
def wise_ft(context: Context) -> MethodResult:
    """Fine-tune b on a's task at the best rate, and pick the best point of the line back to b."""
    split = context.labelled(context.a)
    network, b = context.a.network, context.b.w
    trial = int(_TRIAL * context.budget)
    samples = 0
    tried: dict[float, Tensor] = {}
    for rate in RATES:
        try:
            end, seen = fine_tuned(network, b, split, trial, rate=rate, seed=context.seed)
        except NumericalError:  # too large a rate for this network
            samples += trial
            continue
        samples += seen
        tried[rate] = context.pick_on_line(b, end)[1]
    if not tried:
        raise NumericalError(f"fine-tuning diverged at every rate of {RATES}")
    best, _ = context.pick(len(tried), list(tried.values()).__getitem__)
    rate = list(tried)[best]
    end, seen = fine_tuned(
        network, b, split, context.budget - samples, rate=rate, seed=context.seed
    )
    t, w = context.pick_on_line(b, end)
    return MethodResult(
        w,
        inputs=("a",),
        labels=("a",),
        samples=samples + seen,
        chosen={"rate": rate, "t": t},
    )
