"""Pseudo-inputs have the moments of the inputs."""

from __future__ import annotations

import pytest
import torch

from geomerge.continual import measure_moments
from geomerge.data import as_they_are


@pytest.fixture
def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    mix = torch.randn(6, 12)
    groups = torch.arange(4000) % 4 // 3  # three quarters of one, a quarter of the other
    centres = torch.tensor([[0.0], [5.0]])[groups] * torch.ones(12)
    return (centres + torch.randn(4000, 6) @ mix).view(4000, 3, 4), groups


def test_whole_moments_are_kept(inputs: tuple[torch.Tensor, torch.Tensor]) -> None:
    x, groups = inputs
    moments = measure_moments(as_they_are(x), groups, rank=12)
    assert moments.kept == pytest.approx(1, abs=1e-5)
    drawn = moments.draw(100_000, seed=1)
    assert drawn.shape[1:] == (3, 4)
    first = len(drawn) * 3 // 4
    for mine, theirs in ((drawn[:first], x[groups == 0]), (drawn[first:], x[groups == 1])):
        mine, theirs = mine.flatten(1), theirs.flatten(1)
        torch.testing.assert_close(mine.mean(0), theirs.mean(0), atol=0.05, rtol=0.05)
        wanted = torch.cov(theirs.T)
        gap = torch.linalg.matrix_norm(torch.cov(mine.T) - wanted)
        assert gap < 0.03 * torch.linalg.matrix_norm(wanted)


@pytest.mark.parametrize("rank", [1, 3, 6])
def test_leading_directions_hold_their_variance_and_the_rest_is_isotropic(
    inputs: tuple[torch.Tensor, torch.Tensor], rank: int
) -> None:
    x, groups = inputs
    small = measure_moments(as_they_are(x), groups, rank)
    for one, group in zip(small.clusters, (0, 1), strict=True):
        values = torch.linalg.eigvalsh(torch.cov(x[groups == group].flatten(1).T)).flip(0)
        torch.testing.assert_close(one.covariance.values, values[:rank], rtol=1e-3, atol=1e-3)
        assert one.covariance.trace == pytest.approx(float(values.sum()), rel=1e-4)
    assert small.kept <= 1


@pytest.mark.parametrize("rank", [2, 5, 12])
def test_a_common_basis_keeps_second_moments(
    inputs: tuple[torch.Tensor, torch.Tensor], rank: int
) -> None:
    x, groups = inputs
    whole = measure_moments(as_they_are(x), groups, 6)
    common = whole.in_common_basis(rank)
    assert common.rank == min(rank, 12)
    one, two = (m.draw(200_000, seed=1).flatten(1) for m in (whole, common))
    # Whatever lies outside of the basis is spread over all directions.
    assert two.square().sum(1).mean() == pytest.approx(float(one.square().sum(1).mean()), rel=0.01)
    torch.testing.assert_close(two.mean(0), one.mean(0), atol=0.05, rtol=0.02)
    if rank == 12:
        gap = torch.linalg.matrix_norm(torch.cov(two.T) - torch.cov(one.T))
        assert gap < 0.02 * torch.linalg.matrix_norm(torch.cov(one.T))
    assert common.in_common_basis(2).nbytes <= common.nbytes


def test_a_rest_of_many_dimensions_has_the_moments_too() -> None:
    torch.manual_seed(0)
    mix = torch.cat([3 * torch.randn(2, 150), 0.5 * torch.eye(150)])
    x = torch.randn(4000, 152) @ mix + 1
    moments = measure_moments(as_they_are(x), torch.zeros(4000), rank=2)
    drawn = moments.draw(20_000, seed=1)
    torch.testing.assert_close(drawn.mean(0), x.mean(0), atol=0.1, rtol=0)
    leading = torch.linalg.eigh(torch.cov(x.T)).eigenvectors[:, -2:]
    for mine, theirs in ((drawn, x), (drawn @ leading, x @ leading)):
        total = float(torch.cov(theirs.T).trace())
        assert float(torch.cov(mine.T).trace()) == pytest.approx(total, rel=0.03)
    rest = drawn - drawn @ leading @ leading.T
    spread = torch.linalg.eigvalsh(torch.cov(rest.T))[2:]
    assert float(spread.max()) < 1.5 * float(spread.min())


def test_the_same_seed_draws_the_same(inputs: tuple[torch.Tensor, torch.Tensor]) -> None:
    moments = measure_moments(as_they_are(inputs[0]), inputs[1], 4)
    assert torch.equal(moments.draw(50, 3), moments.draw(50, 3))
    assert not torch.equal(moments.draw(50, 3), moments.draw(50, 4))


def test_as_many_are_drawn_as_were_asked_for() -> None:
    torch.manual_seed(0)
    moments = measure_moments(as_they_are(torch.randn(100, 4)), torch.arange(100) % 7, 2)
    for count in range(1, 60):
        assert len(moments.draw(count, 0)) == count


def test_a_group_of_one_input_is_that_input() -> None:
    x = torch.tensor([[1.0, 2.0], [3.0, 1.0], [3.0, 2.0]])
    moments = measure_moments(as_they_are(x), torch.tensor([0, 1, 1]), 2)
    assert torch.equal(moments.draw(3, 0)[0], x[0])
