from __future__ import annotations

import pytest
import torch

from geomerge.metrics.kronecker import factor
from geomerge.metrics.kronecker.factor import Moments, factorise
from geomerge.metrics.kronecker.products import spread


def decaying(size: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64)).Q
    return (basis * 0.9 ** torch.arange(size)) @ basis.T


def test_wide_matrices_keep_their_leading_part_and_their_trace(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    matrix = decaying(120)
    whole = factorise(matrix)
    for name, value in (("WHOLE", 100), ("_PART", 3), ("_MORE", 20)):
        monkeypatch.setattr(factor, name, value)
    found = factorise(matrix)
    assert found.vectors.shape == (120, 40)
    torch.testing.assert_close(found.values, whole.values[:40], rtol=2e-2, atol=1e-5)
    assert abs(found.trace - float(matrix.trace())) < 1e-9
    gap = (found.dense() - matrix).norm() / matrix.norm()
    best = (whole.truncated(40).dense() - matrix).norm() / matrix.norm()
    assert gap < 1.05 * best + 1e-5
    assert torch.equal(found.vectors, factorise(matrix).vectors)  # the same start every time


def test_of_many_rows_evenly_spread_ones_stand_for_all() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(50_000, 6, generator=generator) * torch.arange(1.0, 7.0)
    index, share = spread(len(rows), 6, rows.device)
    assert index is not None
    moments = Moments()
    moments.add(rows[index], share)
    exact = (rows.T @ rows / len(rows)).double()
    found = moments.factor(len(rows)).dense()
    assert float((found - exact).norm() / exact.norm()) < 0.05


def test_few_rows_are_all_counted() -> None:
    rows = torch.randn(300, 6, generator=torch.Generator().manual_seed(0))
    assert spread(len(rows), 6, rows.device) == (None, 1.0)
    moments = Moments()
    moments.add(rows)
    exact = (rows.T @ rows / len(rows)).double()
    torch.testing.assert_close(moments.factor(len(rows)).dense(), exact, rtol=1e-6, atol=1e-6)


def test_a_matrix_on_which_divide_and_conquer_fails_is_decomposed_by_qr(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = torch.randn(9, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    matrix = rows.T @ rows
    whole = factorise(matrix)

    def fail(_: torch.Tensor) -> None:
        raise torch.linalg.LinAlgError("linalg.eigh: The algorithm failed to converge")

    monkeypatch.setattr(torch.linalg, "eigh", fail)
    again = factorise(matrix)
    torch.testing.assert_close(again.values, whole.values)
    torch.testing.assert_close(again.dense(), matrix)


@pytest.mark.parametrize("scale", [1e-30, 1e30, 0.0])
def test_wide_matrices_of_any_size_are_decomposed(scale: float) -> None:
    matrix = decaying(1040) * scale
    found = factorise(matrix)
    assert found.vectors.shape == (1040, 260)
    torch.testing.assert_close(
        found.vectors.T @ found.vectors, torch.eye(260).double(), rtol=0, atol=1e-4
    )
    assert found.trace == pytest.approx(float(matrix.trace()), rel=1e-6)


def test_wide_moments_are_symmetric() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(700, 1100, generator=generator, dtype=torch.float64)
    rows *= 0.99 ** torch.arange(1100)
    moments = Moments()
    moments.add(rows[:300])
    moments.add(rows[300:])
    found, truth = moments.factor(700), factorise(rows.T @ rows / 700)
    torch.testing.assert_close(found.values, truth.values, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.dense(), truth.dense(), rtol=0, atol=1e-3)


@pytest.mark.parametrize("count", [1, 40, 256, 400])  # 256 eigenvectors of 1024 + 4 are stored
@pytest.mark.parametrize("scale", [1.0, 0.0])
def test_few_wide_rows_have_the_factor_of_their_sum(count: int, scale: float) -> None:
    rows = scale * torch.randn(count, 1028, generator=torch.Generator().manual_seed(0))
    moments, shared = Moments(), Moments()
    for part in rows.split(100):
        moments.add(part, 0.5)
        shared.add(part, 0.5)
    exact = (0.5 / count) * (rows.double().T @ rows.double())
    found = moments.factor(count)
    assert found.trace == pytest.approx(float(exact.trace()), rel=1e-6)
    rank = min(len(found.values), count)
    assert rank == min(count, 257) or scale == 0.0
    best = factor.decompose(exact).truncated(257)
    gap = float((found.dense() - best.dense()).norm())
    assert gap <= (1e-6 if count <= 257 else 0.15) * float(exact.norm())
    block, _ = shared.exchanged(1028, rows, mates=None)  # type: ignore[arg-type]
    torch.testing.assert_close(block, count * exact[:1024], rtol=1e-4, atol=1e-4)


def test_leading_eigenvectors_along_coordinates_are_found_as_others_are() -> None:
    values = torch.full((1040,), 1e-3, dtype=torch.float64)
    values[1:260:2] = values[519:778:2] = 1.0  # every second one
    found = factorise(values.diag())
    assert found.vectors.shape == (1040, 260)
    torch.testing.assert_close(found.dense(), values.diag(), rtol=0, atol=1e-4)
    gram = found.vectors.T @ found.vectors
    torch.testing.assert_close(gram, torch.eye(260).double(), rtol=0, atol=1e-6)
