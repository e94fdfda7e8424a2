"""Class statistics: pooled, carried along linear maps, and their discriminant."""

from __future__ import annotations

import pytest
import torch

from geomerge.continual import ClassStatistics, measure_statistics
from geomerge.continual.feature_map import fit_feature_map


@pytest.fixture
def features() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    labels = torch.arange(1200) % 4
    mix = torch.randn(6, 6)
    return torch.randn(1200, 6) @ mix + 3 * torch.randn(4, 6)[labels], labels


def dense(statistics: ClassStatistics) -> torch.Tensor:
    """Return the covariance, once stored."""
    return statistics.stored().whole().covariance.float()


def test_classes_that_come_one_by_one_have_the_statistics_of_all_at_once(
    features: tuple[torch.Tensor, torch.Tensor],
) -> None:
    x, y = features
    whole = measure_statistics(x, y)
    for order in ((0, 1, 2, 3), (3, 1, 0, 2)):
        parts = [measure_statistics(x[y == c], y[y == c]) for c in order]
        joined = parts[0]
        for part in parts[1:]:
            joined = joined.joined(part)
        assert joined.keys == tuple((None, c) for c in order)
        torch.testing.assert_close(joined.means, whole.means[list(order)])
        torch.testing.assert_close(dense(joined), dense(whole), rtol=0.02, atol=0.02)


def test_a_class_that_comes_again_is_pooled(features: tuple[torch.Tensor, torch.Tensor]) -> None:
    x, y = features
    whole, (one, two) = measure_statistics(x, y), (slice(0, 300), slice(300, None))
    joined = measure_statistics(x[one], y[one]).joined(measure_statistics(x[two], y[two]))
    assert joined.keys == whole.keys
    assert torch.equal(joined.counts, whole.counts)
    torch.testing.assert_close(joined.means, whole.means)
    torch.testing.assert_close(dense(joined), dense(whole), rtol=0.02, atol=0.02)


def test_a_linear_map_carries_statistics_exactly(
    features: tuple[torch.Tensor, torch.Tensor],
) -> None:
    x, y = features
    matrix, shift = torch.randn(6, 6), torch.randn(6)
    new = x @ matrix.T + shift
    fitted = fit_feature_map(x, new)
    assert fitted.unexplained < 1e-4
    carried, true = fitted.carry(measure_statistics(x, y)), measure_statistics(new, y)
    torch.testing.assert_close(carried.means, true.means, rtol=0.01, atol=0.02)
    torch.testing.assert_close(dense(carried), dense(true), rtol=0.02, atol=0.2)


def test_features_that_did_not_change_are_carried_unchanged(
    features: tuple[torch.Tensor, torch.Tensor],
) -> None:
    x, y = features
    new = torch.cat([x[:, :3], torch.randn_like(x[:, 3:])], dim=1)
    old = measure_statistics(x, y)
    carried = fit_feature_map(x, new).carry(old)
    torch.testing.assert_close(carried.means[:, :3], old.means[:, :3])
    torch.testing.assert_close(carried.covariance[:3, :3], old.covariance[:3, :3])


def test_what_the_map_leaves_over_is_added(features: tuple[torch.Tensor, torch.Tensor]) -> None:
    x, y = features
    noisy = x + torch.randn_like(x)
    carried = fit_feature_map(x, noisy).carry(measure_statistics(x, y))
    true = measure_statistics(noisy, y)
    assert float(dense(carried).trace()) == pytest.approx(float(dense(true).trace()), rel=0.05)


def test_the_discriminant_is_that_of_the_gaussians(
    features: tuple[torch.Tensor, torch.Tensor],
) -> None:
    x, y = features
    statistics = measure_statistics(x, y)
    found = statistics.discriminant(None, 0.0)
    distance = torch.linalg.solve(
        dense(statistics), (x[:, None] - statistics.means).flatten(0, 1).T
    )
    gaps = (x[:, None] - statistics.means).flatten(0, 1)
    nearest = (gaps * distance.T).sum(1).view(len(x), 4).argmin(1)
    assert (found(x) == nearest).float().mean() > 0.99
    assert (found(x) == y).float().mean() > 0.9
    drawn = statistics.draw(500, seed=1)
    assert (found(drawn[2]) == 2).float().mean() > 0.85


def test_heads_do_not_see_each_other(features: tuple[torch.Tensor, torch.Tensor]) -> None:
    x, y = features
    first = measure_statistics(x[y < 2], y[y < 2], head=0)
    both = first.joined(measure_statistics(x[y >= 2], y[y >= 2] - 2, head=1))
    assert both.keys == ((0, 0), (0, 1), (1, 0), (1, 1))
    for head, own in ((0, y < 2), (1, y >= 2)):
        found = both.discriminant(head, 0.01)(x[own])
        assert (found == y[own] % 2).float().mean() > 0.9


def test_a_wide_covariance_is_stored_whole() -> None:
    width = 1030  # of which a metric's factor would store the leading part
    statistics = ClassStatistics(
        ((None, 0),), torch.tensor([9]), torch.zeros(1, width),
        torch.diag(torch.linspace(1, 2, width, dtype=torch.float64)),
    )  # fmt: skip
    stored = statistics.stored()
    assert stored.rank == width
    assert stored.nbytes == 2 * width**2 + 4 * width + 4 * width + 8
    torch.testing.assert_close(dense(statistics), statistics.covariance.float(), atol=0.01, rtol=0)
    assert stored.truncated(5).nbytes < stored.nbytes / 50
