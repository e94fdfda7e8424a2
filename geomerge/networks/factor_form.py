"""Forms in which a network's Kronecker factors are held, by their memory."""

from __future__ import annotations

from enum import IntEnum

__all__ = ["FactorForm"]


class FactorForm(IntEnum):
    """Form in which the Kronecker factors of a network's metric are measured and held.

    Each form takes less memory than those before it, whose savings it has too.

    Attributes:
        WHOLE: One factor for the inputs and one for the outputs of every layer, in the type of the
            weights.
        HALF: Their eigenvectors in bfloat16.
        FILES: Those in temporary files.
        BLOCKS: Four diagonal blocks of every wide factor.
        DIAGONAL: The diagonal of the metric alone.
    """

    WHOLE = 0
    HALF = 1
    FILES = 2
    BLOCKS = 3
    DIAGONAL = 4
