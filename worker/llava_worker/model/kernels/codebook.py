"""Codebooks: the values of 4-bit and 5-bit codes of weights.

The weights of a layer are approximately normally distributed, so most are small. Values are therefore closer
to each other near 0. They are 8-bit integers, so that products can be computed with 8-bit instructions.

Each codebook minimizes the mean absolute error of groups of WEIGHT_GROUP normally distributed weights, scaled
so that the weight with the largest magnitude becomes the first value. A codebook for the absolute error
resolves small weights better than one for the squared error (arXiv 2306.06965). A test recomputes the
codebooks.
"""

from __future__ import annotations

__all__ = ["CODEBOOKS"]

# Keyed by bits. Values are in ascending order. The first has the largest magnitude, and none is 0.
CODEBOOKS: dict[int, tuple[int, ...]] = {
    4: (-127, -93, -72, -56, -43, -31, -19, -9, 2, 12, 23, 35, 47, 62, 79, 104),
    5: (
        *(-127, -107, -93, -82, -72, -63, -56, -49, -42, -36, -30, -25, -19, -14, -9, -3),
        *(2, 7, 12, 17, 23, 28, 34, 40, 46, 53, 60, 68, 77, 87, 99, 115),
    ),
}
