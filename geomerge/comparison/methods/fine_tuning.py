"""Fine-tuning of b on a's labels: plain, WiSE-FT (Wortsman 2022) and EWC (Kirkpatrick 2017)."""

from __future__ import annotations

from collections import deque

from torch import Tensor

from geomerge.comparison.context import Context, NotApplicableError
from geomerge.comparison.methods.fisher import FISHER_INPUTS, diagonal_fisher
from geomerge.comparison.registry import MethodResult, method
from geomerge.errors import NumericalError
from geomerge.training import fine_tune

__all__ = ["LAMBDAS", "RATES", "fine_tuned"]

_BATCH = 256
_RATE = 0.02  # learning rate, as in the benchmarks
RATES = (_RATE / 4, _RATE, 4 * _RATE)
LAMBDAS = (1.0, 10.0, 100.0, 1000.0)
_TRIAL = 0.1  # share of the samples for a trial of each learning rate


def fine_tuned(
    context: Context,
    samples: int,
    *,
    rate: float = _RATE,
    stiffness: Tensor | None = None,  # (n,)
) -> tuple[Tensor, int]:
    """Fine-tune b on the labels of a's task.

    Args:
        context: Context of the comparison.
        samples: Number of samples, summed over epochs.
        rate: Constant learning rate.
        stiffness: Stiffness of the penalty on moves from b, as in
            :func:`geomerge.training.fine_tune`.

    Returns:
        Weights, shape (n,), and the number of samples seen.

    Raises:
        NotApplicableError: If a's labels may not be used.
        NumericalError: If the loss is not finite.
    """
    split = context.labelled(context.a)
    batch = min(_BATCH, len(split.labels))
    steps = samples // batch
    points = fine_tune(
        context.a.network, context.b.weights, split, steps=steps, learning_rate=rate, batch=batch,
        stiffness=stiffness, seed=context.seed,
    )  # fmt: skip
    (w,) = deque(points, maxlen=1) or [context.b.weights]  # keeps only the last point
    return w, steps * batch


@method("fine-tuning", "training", "b fine-tuned on a's labels, without protection of b's task")
def fine_tuning(context: Context) -> MethodResult:
    """Fine-tune b on a's task with all samples."""
    w, samples = fine_tuned(context, context.max_samples)
    return MethodResult(w, inputs=("a",), labels=("a",), samples=samples)


@method("wise-ft", "training", "b fine-tuned on a's labels, best point of the line back to b")
def wise_ft(context: Context) -> MethodResult:
    """Fine-tune b on a's task at the best rate, and pick the best point of the line to b."""
    context.labelled(context.a)
    b = context.b.weights
    trial = int(_TRIAL * context.max_samples)
    samples = 0
    tried: dict[float, Tensor] = {}
    for rate in RATES:
        try:
            end, seen = fine_tuned(context, trial, rate=rate)
        except NumericalError:  # the learning rate is too large for this network
            samples += trial
            continue
        samples += seen
        tried[rate] = context.pick_on_line(b, end)[1]
    if not tried:
        listed = " and ".join(map(str, RATES))
        raise NumericalError(
            f"fine-tuning diverged at every learning rate of {listed}, expected a finite loss at "
            "one"
        )
    best, _ = context.pick(len(tried), list(tried.values()).__getitem__)
    rate = list(tried)[best]
    end, seen = fine_tuned(context, context.max_samples - samples, rate=rate)
    t, w = context.pick_on_line(b, end)
    return MethodResult(
        w,
        inputs=("a",),
        labels=("a",),
        samples=samples + seen,
        chosen={"rate": rate, "t": t},
    )


@method("ewc", "training", "b fine-tuned on a's labels with b's diagonal Fisher penalty (EWC)")
def ewc(context: Context) -> MethodResult:
    """Fine-tune b with each lambda on an equal share of the samples, and pick the best."""
    b = context.b
    context.labelled(context.a)
    (inputs,) = context.inputs(b)
    measured = min(FISHER_INPUTS, len(inputs))
    each = (context.max_samples - measured) // len(LAMBDAS)
    if each < _BATCH:
        raise NotApplicableError(
            f"needs {measured + len(LAMBDAS) * _BATCH} samples, got {context.max_samples}; give "
            "more as `max_samples`"
        )
    fisher = diagonal_fisher(b.network, b.weights, inputs, context.seed)
    ends = [fine_tuned(context, each, stiffness=strength * fisher) for strength in LAMBDAS]
    best, w = context.pick(len(ends), lambda k: context.settled(ends[k][0]))
    return MethodResult(
        w,
        inputs=("a", "b"),
        labels=("a",),
        samples=measured + sum(samples for _, samples in ends),
        chosen={"lambda": LAMBDAS[best]},
    )
