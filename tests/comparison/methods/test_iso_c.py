from __future__ import annotations

import torch

from geomerge.comparison.methods.iso_c import isotropic
from geomerge.testing.method_laws import MethodLaws


class TestIsoC(MethodLaws):
    name = "iso-c"


def test_singular_values_are_their_mean() -> None:
    matrix = torch.randn(4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    before = torch.linalg.svdvals(matrix)
    torch.testing.assert_close(torch.linalg.svdvals(isotropic(matrix)), before.mean().expand(4))
    torch.testing.assert_close(isotropic(isotropic(matrix)), isotropic(matrix))
