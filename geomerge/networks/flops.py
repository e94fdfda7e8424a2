"""Counter of the floating-point operations of passes, attention included."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch.utils.flop_counter import FlopCounterMode

__all__ = ["flop_counter"]


@contextmanager
def flop_counter() -> Iterator[FlopCounterMode]:
    """Count the operations of passes inside the context, two per multiply-add.

    Those of matrix products, convolutions and attention are counted, elementwise operations and
    norms are not.
    """
    # With them torch reads its compiler, which takes as long as all else that geomerge imports.
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        # Attention by matrix products, since fused kernels are not counted.
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            yield counter
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
