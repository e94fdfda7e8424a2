"""ISO-C, TSV-M and WUDI: task matrices merged without data."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from geomerge.comparison.methods.task_matrices import (
    isotropic,
    least_interference,
    orthogonal_singular_vectors,
)
from geomerge.testing.method_laws import MethodLaws, small_normed_cnn


class TestIsoC(MethodLaws):
    name = "iso-c"


class TestTsvM(MethodLaws):
    name = "tsv-m"

    def make_network(self) -> nn.Module:
        return small_normed_cnn()


class TestWudi(MethodLaws):
    name = "wudi"


def randn(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def test_singular_values_are_their_mean() -> None:
    matrices = randn(2, 4, 6)
    before = torch.linalg.svdvals(matrices.sum(dim=0))
    after = torch.linalg.svdvals(isotropic(matrices))
    torch.testing.assert_close(after, before.mean().expand(4))
    again = isotropic(isotropic(matrices)[None])
    torch.testing.assert_close(again, isotropic(matrices))


def test_task_matrices_whose_singular_vectors_do_not_meet_are_added() -> None:
    u, v = torch.linalg.qr(randn(6, 6))[0], torch.linalg.qr(randn(8, 6, seed=1))[0]
    values = torch.tensor([3.0, 2.5, 2.0, 1.5, 1.0, 0.5], dtype=torch.float64)
    one, two = ((u[:, k] * values[k]) @ v[:, k].T for k in (slice(0, 3), slice(3, 6)))
    merged = orthogonal_singular_vectors(torch.stack([one, two]))
    torch.testing.assert_close(merged, one + two)


def test_singular_values_of_truncated_task_matrices_stay() -> None:
    matrices = randn(3, 9, 7)
    kept = torch.linalg.svdvals(matrices)[:, :2].reshape(-1)
    found = torch.linalg.svdvals(orthogonal_singular_vectors(matrices))
    torch.testing.assert_close(found[:6], kept.sort(descending=True).values)
    assert float(found[6]) < 1e-9


def test_interference_is_least_where_its_gradient_is_zero() -> None:
    matrices = randn(2, 4, 6).requires_grad_(False)
    merged = least_interference(matrices).requires_grad_(True)
    norms = matrices.square().sum(dim=(1, 2))
    apart = ((merged - matrices) @ matrices.mT).square().sum(dim=(1, 2))
    (gradient,) = torch.autograd.grad((apart / norms).sum(), merged)
    assert float(gradient.abs().max()) < 1e-7
    # Where the rows of a task matrix have no part, the sum stays, which the descent starts from.
    torch.testing.assert_close(
        least_interference(torch.stack([matrices[0], torch.zeros(4, 6, dtype=torch.float64)])),
        matrices[0],
    )
