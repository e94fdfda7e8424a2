"""The laws of the methods that a comparison puts side by side."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from geomerge.comparison import METHODS
from geomerge.comparison.context import Context, NotApplicableError
from geomerge.comparison.descent import fine_tuned
from geomerge.comparison.fisher import diagonal_fisher
from geomerge.comparison.methods.ensemble import mean_of_softmax
from geomerge.comparison.methods.fisher import fisher_merge
from geomerge.comparison.methods.regmean import layer_grams, regression_mean
from geomerge.comparison.methods.slerp import slerp
from geomerge.comparison.methods.task_arithmetic import task_arithmetic
from geomerge.comparison.methods.ties import ties, trim
from geomerge.comparison.methods.zipit import match_pairs
from geomerge.errors import OptionError
from geomerge.evaluation.pick import PickRule

MakeCase = Callable[..., Context]
SUM = ("average", "straight-line", "slerp", "fisher", "regmean", "weight-matching", "zipit")


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("name", SUM)
def test_a_network_merged_with_itself_is_itself(name: str, make_case: MakeCase) -> None:
    context = make_case(twin=True)
    found = METHODS[name].make(context)
    torch.testing.assert_close(found.answer, context.a.w, rtol=1e-5, atol=1e-6)


def test_slerp_goes_from_end_to_end_on_the_sphere() -> None:
    a, b = randn(7), randn(7, seed=1)
    assert torch.equal(slerp(a, b, 0.0), a)
    assert torch.equal(slerp(a, b, 1.0), b)
    one, two = a / a.norm(), b / b.norm()
    half = slerp(one, two, 0.5)
    torch.testing.assert_close(half.norm(), half.new_ones(()))
    torch.testing.assert_close(half @ one, half @ two)
    for t in (0.2, 0.5, 0.9):
        torch.testing.assert_close(slerp(a, a, t), a)
        torch.testing.assert_close(slerp(a, 3 * a, t), (1 + 2 * t) * a)
        torch.testing.assert_close(slerp(a * 0, a, t), t * a)


def test_task_arithmetic_adds_what_was_learned() -> None:
    base, a, b = randn(9), randn(9, seed=1), randn(9, seed=2)
    torch.testing.assert_close(task_arithmetic(base, [a, b], 0.5), (a + b) / 2)
    torch.testing.assert_close(task_arithmetic(base, [a], 1.0), a)


def test_ties_of_one_network_is_task_arithmetic_of_the_trimmed() -> None:
    base, a = randn(20), randn(20, seed=1)
    trimmed = trim(a - base, 0.3)
    assert int((trimmed != 0).sum()) == 6
    assert trimmed.abs()[trimmed != 0].min() >= (a - base).abs()[trimmed == 0].max()
    expected = task_arithmetic(base, [base + trimmed], 0.7)
    torch.testing.assert_close(ties(base, [a], 0.7, kept=0.3), expected)


def test_ties_takes_the_mean_of_what_agrees_with_the_elected_sign() -> None:
    base = torch.zeros(4)
    a, b = torch.tensor([1.0, 3.0, -1.0, 0.0]), torch.tensor([3.0, -1.0, -3.0, 2.0])
    torch.testing.assert_close(
        ties(base, [a, b], 1.0, kept=1.0), torch.tensor([2.0, 3.0, -2.0, 2.0])
    )


def test_fisher_merging_weighs_by_the_fishers() -> None:
    a, b = randn(6), randn(6, seed=1)
    fisher = randn(6, seed=2).square()
    torch.testing.assert_close(fisher_merge((a, b), (fisher, fisher)), (a + b) / 2)
    zero = torch.zeros(6, dtype=torch.float64)
    torch.testing.assert_close(fisher_merge((a, b), (zero, zero)), (a + b) / 2)
    only = torch.tensor([6.0, 0, 0, 0, 0, 0], dtype=torch.float64)
    merged = fisher_merge((a, b), (only, only.flip(0)))
    torch.testing.assert_close(merged[[0, 5]], torch.stack([a[0], b[5]]), rtol=1e-5, atol=1e-5)


def test_the_fisher_is_the_expected_square_of_the_score(make_case: MakeCase) -> None:
    context = make_case()
    network, inputs = context.network, context.inputs(context.a)[0]
    w = context.a.w.clone().requires_grad_()
    x = inputs.batch(slice(0, len(inputs)))
    truth = torch.zeros_like(context.a.w)
    for one in x:
        log_p = network.outputs(w, one.unsqueeze(0)).log_softmax(dim=1)[0]
        for c in range(len(log_p)):
            (score,) = torch.autograd.grad(log_p[c], w, retain_graph=True)
            truth += log_p[c].exp().detach() * score.square() / len(x)
    draws = [diagonal_fisher(network, context.a.w, inputs, seed) for seed in range(40)]
    mean = torch.stack(draws).mean(dim=0)
    assert (mean - truth).norm() < 0.05 * truth.norm()


def test_regmean_minimises_its_least_squares() -> None:
    xs = [randn(40, 5), 2 * randn(30, 5, seed=1)]
    ws = [randn(5, 3, seed=2), randn(5, 3, seed=3)]
    grams = [x.T @ x for x in xs]
    wanted = torch.cat([x @ w for x, w in zip(xs, ws, strict=True)])
    brute = torch.linalg.lstsq(torch.cat(xs), wanted).solution
    torch.testing.assert_close(regression_mean(ws, grams), brute, rtol=1e-6, atol=1e-6)
    mean = (ws[0] + ws[1]) / 2
    torch.testing.assert_close(regression_mean(ws, [grams[0]] * 2), mean)
    thin = [g * torch.outer(k := torch.arange(5) < 3, k) for g in grams]
    merged = regression_mean(ws, thin)
    torch.testing.assert_close(merged[3:], mean[3:])  # what no input has is averaged


def test_gram_matrices_are_those_of_the_layers_inputs(make_case: MakeCase) -> None:
    context = make_case()
    inputs = context.inputs(context.a)[0]
    x = inputs.batch(slice(0, len(inputs))).flatten(1)
    rows = torch.cat([x, torch.ones(len(x), 1)], dim=1)
    grams = layer_grams(context.network, context.a.w, inputs)
    assert set(grams) == {"1", "3"}
    torch.testing.assert_close(grams["1"], (rows.T @ rows).double(), rtol=1e-5, atol=1e-3)


def test_pairs_are_the_most_correlated_of_those_left() -> None:
    c = torch.eye(4)
    for i, j, value in ((0, 1, 0.9), (1, 2, 0.95), (0, 3, 0.1), (2, 3, 0.5)):
        c[i, j] = c[j, i] = value
    pairs = {frozenset(pair) for pair in match_pairs(c).tolist()}
    assert pairs == {frozenset({1, 2}), frozenset({0, 3})}


@pytest.mark.parametrize("kind", ["mlp", "normed-cnn"])
def test_zipping_a_network_with_a_permuted_copy_keeps_its_function(
    kind: str, make_case: MakeCase
) -> None:
    context = make_case(kind, twin=True)
    parts = {k: v.clone() for k, v in context.network.unravel(context.a.w).items()}
    order = torch.randperm(12 if kind == "mlp" else 5)
    if kind == "mlp":
        outs, read = ["1.weight", "1.bias"], "3.weight"
    else:
        outs = ["0.weight", "1.weight", "1.bias", "1.running_mean", "1.running_var"]
        read = "3.weight"
    for name in outs:
        parts[name] = parts[name][order]
    parts[read] = parts[read][:, order]
    context.b.w = context.network.ravel(parts)
    found = METHODS["zipit"].make(context).answer
    x = context.inputs(context.a)[0].batch(slice(0, 50))
    same = context.network.logits(context.a.w, x)
    zipped = context.network.logits(found, x)
    if kind == "mlp":
        torch.testing.assert_close(zipped, same, rtol=1e-4, atol=1e-5)
    trained = slice(0, context.network.n_parameters)  # statistics are measured anew
    torch.testing.assert_close(found[trained], context.a.w[trained], rtol=1e-4, atol=1e-5)


def test_the_ensemble_of_a_network_with_itself_answers_as_it_does(make_case: MakeCase) -> None:
    context = make_case()
    x = context.inputs(context.a)[0].batch(slice(0, 50))
    answers = mean_of_softmax(context.a.w, context.a.w)(context.a, x).argmax(dim=1)
    assert torch.equal(answers, context.network.logits(context.a.w, x).argmax(dim=1))


def test_the_line_back_leads_from_b_to_the_fine_tuned_network(make_case: MakeCase) -> None:
    context = make_case()
    a, b = context.a, context.b
    split = context.labelled(a)
    found = METHODS["wise-ft"].make(context)
    assert found.samples <= context.budget
    left = context.budget - 3 * len(split.labels)  # a trial of each rate was one step of all
    end, _ = fine_tuned(a.network, b.w, split, left, rate=found.chosen["rate"])
    torch.testing.assert_close(found.answer, torch.lerp(b.w, end, found.chosen["t"]))
    nearest_b = replace(context, rule=PickRule("b", lambda s: -s.distance["b"], "one"))
    t, w = nearest_b.pick_on_line(b.w, end)
    assert t == 0
    assert torch.equal(w, b.w)
    t, w = nearest_b.pick_on_line(end, b.w)
    assert t == 1
    assert torch.equal(w, b.w)


def test_ewc_stays_nearer_to_b_in_its_fisher_the_larger_lambda_is(make_case: MakeCase) -> None:
    context = make_case()
    fisher = diagonal_fisher(context.network, context.b.w, context.inputs(context.b)[0])
    split = context.labelled(context.a)

    def drift(strength: float | None) -> float:
        held = None if strength is None else strength * fisher
        w, _ = fine_tuned(context.network, context.b.w, split, 8000, held=held)
        return float((fisher * (w - context.b.w).square()).sum())

    drifts = [drift(s) for s in (None, 0.0, 10.0, 1e3, 1e9)]
    assert drifts[0] == drifts[1]
    assert drifts[1] > drifts[2] > drifts[3] > drifts[4]
    assert drifts[4] < 1e-6 * drifts[0]


@pytest.mark.parametrize(
    ("name", "kind", "part"),
    [
        ("task-arithmetic", "mlp", "--base"),
        ("ties", "mlp", "--base"),
        ("repair", "mlp", "no BatchNorm statistics"),
        ("zipit", "residual", "row of Linear and Conv2d layers"),
    ],
)
def test_what_cannot_be_used_says_why(name: str, kind: str, part: str, make_case: MakeCase) -> None:
    with pytest.raises(NotApplicableError, match=part):
        METHODS[name].make(make_case(kind))


@pytest.mark.parametrize("name", ["task-arithmetic", "ties"])
def test_an_ancestor_gives_task_vectors(name: str, make_case: MakeCase) -> None:
    found = METHODS[name].make(make_case(base=True))
    assert 0.1 <= found.chosen["scale"] <= 1.5


def test_statistics_measured_anew_are_those_of_both_tasks(make_case: MakeCase) -> None:
    context = make_case("normed-cnn")
    plain, reset = (METHODS[k].make(context) for k in ("weight-matching", "repair"))
    n = context.network.n_parameters
    assert isinstance(plain.answer, torch.Tensor)
    assert isinstance(reset.answer, torch.Tensor)
    assert not torch.equal(plain.answer[n:], reset.answer[n:])


@pytest.mark.parametrize(
    "name", [k for k in METHODS if k not in ("a", "b", "ensemble", "average", "straight-line")]
)
def test_methods_do_not_use_inputs_that_were_not_given(name: str, make_case: MakeCase) -> None:
    context = make_case(base=True)
    context.a.manifold = context.b.manifold = None
    if name in ("slerp", "task-arithmetic", "ties", "weight-matching"):
        found = METHODS[name].make(context)
        assert found.inputs == found.labels == ()
        return
    with pytest.raises((NotApplicableError, OptionError)):
        METHODS[name].make(context)


def test_measuring_statistics_counts_as_using_inputs(make_case: MakeCase) -> None:
    context = make_case("normed-cnn")
    METHODS["average"].make(context)
    assert context.measured == set()
    context.sides.bn = "re-estimate"
    METHODS["weight-matching"].make(context)
    assert context.measured == set()
    METHODS["average"].make(context)
    assert context.measured == {"a", "b"}
