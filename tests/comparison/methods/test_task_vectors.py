"""Task arithmetic and TIES."""

from __future__ import annotations

import pytest
import torch

from geomerge.comparison import METHODS
from geomerge.comparison.context import NotApplicableError
from geomerge.comparison.methods.task_vectors import task_arithmetic, ties, trim
from geomerge.testing.method_laws import MethodLaws, method_case


class TestTaskArithmetic(MethodLaws):
    name = "task-arithmetic"


class TestTies(MethodLaws):
    name = "ties"


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


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


@pytest.mark.parametrize("name", ["task-arithmetic", "ties"])
def test_task_vectors_need_an_ancestor(name: str) -> None:
    with pytest.raises(NotApplicableError, match="`base`"):
        METHODS[name].make(method_case())
    result = METHODS[name].make(method_case(base=True))
    assert 0.1 <= result.chosen["scale"] <= 1.5
