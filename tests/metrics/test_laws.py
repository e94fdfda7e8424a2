"""Laws of every metric of the registry."""

from __future__ import annotations

import pytest
from torch import Tensor

from geomerge import KroneckerMetric, Network
from geomerge.metrics import METRICS, Metric, exact_metric
from geomerge.networks.batches import Batch, split
from geomerge.testing import MetricLaws, dense_kronecker


class TestEuclidean(MetricLaws):
    name = "euclidean"


class TestExact(MetricLaws):
    name = "exact"
    exact = True


class TestExactLogits(TestExact):
    output = "logits"


class TestExactSoftmax(TestExact):
    output = "softmax"


class TestExactOfEveryKind(TestExact):
    @pytest.fixture
    def case(self, kind: tuple[Network, Batch]) -> tuple[Network, Batch]:
        return kind

    def make(self, network: Network, x: Batch) -> Metric:
        return exact_metric(network, network.initial, split(x, 3), self.output, rank=60)


class TestGram(MetricLaws):
    name = "gram"
    exact = True


class TestGramOfEveryKind(TestGram):
    @pytest.fixture
    def case(self, kind: tuple[Network, Batch]) -> tuple[Network, Batch]:
        return kind


class TestKronecker(MetricLaws):
    name = "kronecker"

    def truth(self, metric: Metric, network: Network, x: Batch) -> Tensor:
        assert isinstance(metric, KroneckerMetric)
        return dense_kronecker(metric)


def test_every_metric_has_its_laws() -> None:
    assert {laws.name for laws in MetricLaws.__subclasses__()} == set(METRICS)
