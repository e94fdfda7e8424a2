"""Laws of comparison methods: identity on twins, finite results, true provenance.

A test class for a method inherits the laws and names the method::

    class TestSlerp(MethodLaws):
        name = "slerp"
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from geomerge.comparison.context import Context, NotApplicableError
from geomerge.comparison.registry import METHODS, MethodResult
from geomerge.data.task import make_task
from geomerge.errors import OptionError, Problems
from geomerge.evaluation.pick import parse_pick
from geomerge.expert import Expert
from geomerge.merging.options import MergeOptions
from geomerge.merging.prepare import prepare
from geomerge.networks.network import Network

__all__ = ["MethodLaws", "method_case", "small_mlp", "small_normed_cnn"]

INPUT_SHAPE = (2, 4, 4)


def small_mlp() -> nn.Module:
    """Return a perceptron of 435 weights for inputs of shape (2, 4, 4) and three classes."""
    return nn.Sequential(nn.Flatten(), nn.Linear(32, 12), nn.ReLU(), nn.Linear(12, 3))


def small_normed_cnn() -> nn.Module:
    """Return a convolutional network with running statistics for the same inputs and classes."""
    return nn.Sequential(
        nn.Conv2d(2, 5, 3, padding=1, bias=False), nn.BatchNorm2d(5), nn.ReLU(),
        nn.Conv2d(5, 6, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(96, 3),
    )  # fmt: skip


def method_case(
    make: Callable[[], nn.Module] = small_mlp,
    *,
    twin: bool = False,
    base: bool = False,
    max_samples: int = 6000,
    steps: int | None = None,
) -> Context:
    """Return a context of two small untrained networks, each right about its own task.

    Args:
        make: Maker of a network for inputs of shape (2, 4, 4) and three classes.
        twin: Whether b has the weights of a.
        base: Whether there is a common ancestor: the mean of both.
        max_samples: Largest number of samples of a method with training.
        steps: Number of steps of each walk; None is the usual number.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        networks = [Network(_with_statistics(make())) for _ in "ab"]
        network = networks[0]
        weights = [network.initial, networks[0 if twin else 1].initial]
        experts = []
        for k, (name, w) in enumerate(zip("ab", weights, strict=True)):
            x = torch.randn(300, *INPUT_SHAPE) + k
            y = network.logits(w, x).argmax(dim=1)
            task = make_task(f"task {name}", (x[:200], y[:200]), (x[200:], y[200:]), None)
            expert = Expert(name, network, w, task, task.train.inputs, source=f"{name}.pt")
            experts.append(expert)
    prepared = prepare(experts, MergeOptions(steps=steps, bn="keep"), Problems(strict=True))
    assert prepared is not None, "strict problems are raised"
    return Context(
        prepared=prepared,
        rule=parse_pick("balanced", {"a": 1.0, "b": 1.0}),
        max_samples=max_samples,
        base=torch.lerp(weights[0], weights[1], 0.5) if base else None,
    )


def _with_statistics(module: nn.Module) -> nn.Module:
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            assert layer.running_mean is not None
            assert layer.running_var is not None
            layer.running_mean.uniform_(-0.3, 0.3)
            layer.running_var.uniform_(0.5, 2)
    return module


class MethodLaws:
    """Laws that every method of the comparison obeys, as test methods for any test runner.

    Attributes:
        name: Name of the method.
        fixed_on_twins: Whether a network merged with itself is itself. Not so where labels train.
    """

    name: ClassVar[str]
    fixed_on_twins: ClassVar[bool] = True

    def make_network(self) -> nn.Module:
        """Return an untrained network for inputs of shape (2, 4, 4) and three classes."""
        return small_mlp()

    def case(self, *, twin: bool = False) -> Context:
        """Return a new case with all data, and an ancestor."""
        return method_case(self.make_network, twin=twin, base=True, steps=10)

    def made(self, context: Context) -> MethodResult:
        """Return the method's result, with inputs whose statistics were measured among its own."""
        context = replace(context, measured=set())
        result = METHODS[self.name].make(context)
        return replace(result, inputs=tuple(sorted({*result.inputs, *context.measured})))

    def test_a_network_merged_with_itself_is_itself(self) -> None:
        """Trained weights of twins stay as they are."""
        if not self.fixed_on_twins:
            return
        context = self.case(twin=True)
        n = context.network.n_parameters
        answer = self.made(context).answer
        if isinstance(answer, Tensor):
            torch.testing.assert_close(answer[:n], context.a.weights[:n], rtol=1e-5, atol=1e-6)
        else:
            x = context.inputs(context.a)[0].batch(slice(None))
            expected = context.network.logits(context.a.weights, x).argmax(dim=1)
            assert torch.equal(answer(context.a, x).argmax(dim=1), expected)

    def test_results_are_finite_and_of_the_networks_shape(self) -> None:
        """Weights, or scores of a predictor, are finite; no more samples are used than allowed."""
        context = self.case()
        result = self.made(context)
        x = context.inputs(context.a)[0].batch(slice(0, 8))
        if isinstance(result.answer, Tensor):
            assert result.answer.shape == context.a.weights.shape
            assert bool(result.answer.isfinite().all())
        else:
            scores = result.answer(context.a, x)
            assert scores.shape == context.network.logits(context.a.weights, x).shape
            assert bool(scores.isfinite().all())
        if METHODS[self.name].group == "training":
            assert 0 < result.samples <= context.max_samples

    def test_the_same_case_gives_the_same_bits(self) -> None:
        """Draws depend on the seed alone, and networks are not changed."""
        context = self.case()
        before = [expert.weights.clone() for expert in context.space]
        one, two = self.made(context), self.made(context)
        assert self._same(one, two, context)
        for expert, w in zip(context.space, before, strict=True):
            assert torch.equal(expert.weights, w)

    def test_data_that_is_not_named_is_not_used(self) -> None:
        """Without the inputs, sketches and training labels that it does not name: same result."""
        result = self.made(self.case())
        context = self.case()
        for expert in context.space:
            less = expert
            if expert.name not in result.inputs:
                less = replace(less, inputs=None)
            if expert.name not in result.sketches:
                less = replace(less, sketch=None)
            if expert.name not in result.labels:
                less = self._rotate_labels(less)
            context = context.with_expert(less)
        again = self.made(context)
        assert self._same(result, again, context)
        assert (result.inputs, result.labels) == (again.inputs, again.labels)

    def test_data_that_is_named_is_needed(self) -> None:
        """Without inputs that it names a method does not apply; other labels change the result."""
        result = self.made(self.case())
        for name in result.inputs:
            context = self.case()
            context = context.with_expert(replace(context.space[name], inputs=None))
            try:
                self.made(context)
            except (NotApplicableError, OptionError):
                continue
            raise AssertionError(f"{self.name} names inputs of {name} and does without them")
        for name in result.labels:
            context = self.case()
            context = context.with_expert(self._rotate_labels(context.space[name]))
            assert not self._same(result, self.made(context), context), name

    @staticmethod
    def _rotate_labels(expert: Expert) -> Expert:
        """Return the expert with other training labels; those that choose and report stay."""
        assert expert.task is not None
        train = expert.task.train
        rotated = replace(train, labels=(train.labels + 1) % 3)
        return replace(expert, task=replace(expert.task, train=rotated))

    @staticmethod
    def _same(one: MethodResult, two: MethodResult, context: Context) -> bool:
        if isinstance(one.answer, Tensor) and isinstance(two.answer, Tensor):
            return torch.equal(one.answer, two.answer)
        assert not isinstance(one.answer, Tensor)
        assert not isinstance(two.answer, Tensor)
        assert context.a.task is not None
        x = context.a.task.test.inputs.batch(slice(0, 20))
        return torch.equal(one.answer(context.a, x), two.answer(context.a, x))
