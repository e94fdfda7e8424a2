"""Fine-tuning, WiSE-FT and EWC."""

from __future__ import annotations

from dataclasses import replace

import torch

from geomerge.comparison import METHODS
from geomerge.comparison.methods.fine_tuning import fine_tuned
from geomerge.comparison.methods.fisher import diagonal_fisher
from geomerge.evaluation.pick import PickRule
from geomerge.testing.method_laws import MethodLaws, method_case


class TestFineTuning(MethodLaws):
    name = "fine-tuning"
    fixed_on_twins = False


class TestWiseFt(MethodLaws):
    name = "wise-ft"
    fixed_on_twins = False


class TestEwc(MethodLaws):
    name = "ewc"
    fixed_on_twins = False


def test_the_line_back_leads_from_b_to_the_fine_tuned_network() -> None:
    context = method_case(max_samples=2000)
    b = context.b
    split = context.labelled(context.a)
    result = METHODS["wise-ft"].make(context)
    assert result.samples <= context.max_samples
    left = context.max_samples - 3 * len(split.labels)  # a trial of each rate was one step of all
    end, _ = fine_tuned(context, left, rate=result.chosen["rate"])
    torch.testing.assert_close(result.answer, torch.lerp(b.weights, end, result.chosen["t"]))
    nearest_b = replace(context, rule=PickRule("b", lambda s: -s.distance["b"], "one"))
    t, w = nearest_b.pick_on_line(b.weights, end)
    assert t == 0
    assert torch.equal(w, b.weights)
    t, w = nearest_b.pick_on_line(end, b.weights)
    assert t == 1
    assert torch.equal(w, b.weights)


def test_ewc_stays_nearer_to_b_in_its_fisher_the_larger_lambda_is() -> None:
    context = method_case()
    fisher = diagonal_fisher(context.network, context.b.weights, context.inputs(context.b)[0])

    def drift(strength: float | None) -> float:
        stiffness = None if strength is None else strength * fisher
        w, _ = fine_tuned(context, 8000, stiffness=stiffness)
        return float((fisher * (w - context.b.weights).square()).sum())

    drifts = [drift(s) for s in (None, 0.0, 10.0, 1e3, 1e9)]
    assert drifts[0] == drifts[1]
    assert drifts[1] > drifts[2] > drifts[3] > drifts[4]
    assert drifts[4] < 1e-6 * drifts[0]
