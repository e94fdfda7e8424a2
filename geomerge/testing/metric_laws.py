"""Laws of metrics: symmetry, agreement of all operations, and flags that hold.

A test class for a metric inherits the laws and names the metric::

    class TestKronecker(MetricLaws):
        name = "kronecker"

The laws are tried on every network of the fixture ``case`` of ``tests/conftest.py``.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from geomerge.data import as_they_are
from geomerge.errors import OptionError
from geomerge.metrics import METRICS, MaskedMetric, Metric, combine
from geomerge.networks.batches import Batch
from geomerge.networks.network import Network
from geomerge.testing.dense import dense_metric

__all__ = ["MetricLaws"]

Case = tuple[Network, Batch]

_DAMPINGS = (1e-3, 0.1)


class MetricLaws:
    """Laws of a metric of the registry, to be inherited by a test class.

    Attributes:
        name: Name of the metric.
        output: Name of the output map.
        exact: Whether the metric is the pullback metric itself, compared with
            :func:`~geomerge.testing.dense_metric`.
        rtol: Relative tolerance of comparisons in float64.
    """

    name: ClassVar[str]
    output: ClassVar[str] = "hellinger"
    exact: ClassVar[bool] = False
    rtol: ClassVar[float] = 1e-8

    def make(self, network: Network, x: Batch) -> Metric:
        """Return the metric of a network at its initial weights, in float64."""
        inputs = as_they_are(x, dtype=torch.float64)
        return METRICS[self.name].measure(network, network.initial, inputs, self.output, 0)

    def truth(self, metric: Metric, network: Network, x: Batch) -> Tensor:  # (n, n)
        """Return the matrix of the metric: the pullback metric, or its own products."""
        if self.exact:
            return dense_metric(network, network.initial, x, self.output)
        return torch.stack([metric.mv(e) for e in torch.eye(network.n, dtype=torch.float64)])

    def close(self, got: Tensor, expected: Tensor, scale: float = 0.0) -> None:
        """Assert that two tensors differ by little.

        Args:
            got: First tensor.
            expected: Second tensor.
            scale: Size of numbers that cancel in the result, in addition to its largest entry.
        """
        largest = max(scale, float(expected.abs().max()) if expected.numel() else 0.0)
        atol = max(self.rtol * largest, 1e-12)
        torch.testing.assert_close(got, expected, rtol=self.rtol, atol=atol)

    def vectors(self, network: Network) -> tuple[Tensor, Tensor]:
        """Return two random vectors, shape (n,)."""
        generator = torch.Generator().manual_seed(1)
        u, v = torch.randn(2, network.n, generator=generator, dtype=torch.float64)
        return u, v

    def test_the_registry_knows_the_metric(self, case: Case) -> None:
        """Its name, its class and what the class declares."""
        kind, metric = METRICS[self.name], self.make(*case)
        assert isinstance(metric, kind.cls)
        assert metric.name == kind.name == self.name
        assert kind.about

    def test_it_is_symmetric_and_positive_semidefinite(self, case: Case) -> None:
        """No eigenvalue is below ``min_eigenvalue``."""
        network, x = case
        metric = self.make(network, x)
        g = self.truth(metric, network, x)
        self.close(g, g.T)
        values = torch.linalg.eigvalsh(g)
        assert float(values[0]) >= metric.min_eigenvalue - 1e-9 * float(values[-1])

    def test_products_and_inner_products_agree(self, case: Case) -> None:
        """U' g v by ``inner``, by ``mv`` and by the matrix."""
        network, x = case
        metric, (u, v) = self.make(network, x), self.vectors(network)
        g = self.truth(metric, network, x)
        self.close(metric.mv(v), g @ v)
        numbers = v.new_tensor([metric.inner(u, v), metric.inner(v, u), float(u @ metric.mv(v))])
        self.close(numbers, (u @ g @ v).expand(3))
        assert metric.inner(v, v) >= 0

    def test_coordinates_are_those_of_the_eigenbasis(self, case: Case) -> None:
        """They compose to the vector; sums over them are quadratic forms."""
        network, x = case
        metric, (_, v) = self.make(network, x), self.vectors(network)
        coordinates = metric.coordinates(v)
        self.close(coordinates.compose(coordinates.parts), v)
        squares = [coordinates.sum(torch.ones_like), coordinates.sum(lambda s: s)]
        self.close(v.new_tensor(squares), torch.stack([v @ v, v @ metric.mv(v)]))

    def test_functions_are_applied_to_eigenvalues(self, case: Case) -> None:
        """The identity is ``mv``, a constant scales, and the default implementation agrees."""
        network, x = case
        metric, (_, v) = self.make(network, x), self.vectors(network)
        self.close(metric.apply(lambda s: s, v), metric.mv(v))
        self.close(metric.apply(lambda s: 3 * torch.ones_like(s), v), 3 * v)
        self.close(
            metric.apply(lambda s: 1 / (s + 0.01), v),
            Metric.apply(metric, lambda s: 1 / (s + 0.01), v),
        )

    def test_damped_inverses_solve_their_equation(self, case: Case) -> None:
        """(g + mu I) x = rate scale v, and x' g x comes with x."""
        network, x = case
        metric, (_, v) = self.make(network, x), self.vectors(network)
        g = self.truth(metric, network, x)
        for damping in _DAMPINGS:
            for scale, rate in ((1.0, 1.0), (metric.min_eigenvalue + damping, 0.3)):
                solved, change = metric.damped_inverse(v, damping, scale, rate)
                self.close(g @ solved + damping * solved, rate * scale * v)
                cancelling = float(rate * scale * solved @ v)
                self.close(v.new_tensor(change), solved @ g @ solved, cancelling)

    def test_truncation_changes_steps_by_less_than_half(self, case: Case) -> None:
        """Only eigenvalues below half the damping are changed, to others below it."""
        network, x = case
        metric, (_, v) = self.make(network, x), self.vectors(network)
        for damping in _DAMPINGS:
            expected = metric.damped_solve(v, damping)
            got = metric.truncate(damping).damped_solve(v, damping)
            assert float((got - expected).norm()) <= 0.5 * float(expected.norm())

    def test_diagonals_are_those_of_the_matrix(self, case: Case) -> None:
        """Of the metric and of its damped inverse, where they are known."""
        network, x = case
        metric = self.make(network, x)
        diagonal = metric.diagonal_of(lambda s: s)
        inverse = metric.diagonal_of(lambda s: 1 / (s + 0.1))
        if diagonal is None or inverse is None:
            return
        g = self.truth(metric, network, x)
        self.close(diagonal, g.diagonal())
        damped = g + 0.1 * torch.eye(network.n, dtype=torch.float64)
        self.close(inverse, torch.linalg.inv(damped).diagonal())

    def test_flags_hold(self, case: Case) -> None:
        """Isotropic metrics do not turn vectors; additive ones have a mean."""
        network, x = case
        metric, (_, v) = self.make(network, x), self.vectors(network)
        if metric.isotropic:
            solved = metric.damped_solve(v, 0.1)
            self.close(solved / solved.norm(), v / v.norm())
        assert set(metric.diagonal_only) <= set(network.shapes)
        assert combine([metric]) is metric
        try:
            both = combine([metric, metric], mean=True)
        except OptionError:
            assert not metric.additive
        else:
            assert metric.additive
            self.close(both.mv(v), metric.mv(v))

    def test_a_mask_leaves_other_weights_alone(self, case: Case) -> None:
        """Masked steps are zero outside of the mask, and the metric inside is the same."""
        network, x = case
        metric, (u, v) = self.make(network, x), self.vectors(network)
        free = u > -0.3
        masked, inside = MaskedMetric(metric, free), torch.where(free, v, 0.0)
        solved, change = masked.damped_inverse(v, 0.1)
        for vector in (solved, masked.mv(v), masked.apply(torch.ones_like, v)):
            assert not vector[~free].any()
        self.close(v.new_tensor(masked.inner(v, v)), inside @ metric.mv(inside))
        self.close(v.new_tensor(change), solved @ metric.mv(solved))
