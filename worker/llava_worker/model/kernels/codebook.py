"""Codebooks: the values of 4-bit and 5-bit codes of weights.

Most weights of a layer are small, so the values are closer to each other near 0. They are 8-bit integers, so
that products can be computed with 8-bit instructions.

Each codebook minimizes the mean absolute error of groups of WEIGHT_GROUP weights, scaled so that the weight
with the largest magnitude becomes the first value. The weights follow Student's t-distribution with 5 degrees
of freedom, which resembles the weights of language models more closely than the normal distribution (arXiv
2405.03103). A test recomputes the codebooks.
"""

from __future__ import annotations

__all__ = ["CODEBOOKS"]

# Keyed by bits. Values are in ascending order. The first has the largest magnitude, and none is 0.
CODEBOOKS: dict[int, tuple[int, ...]] = {
    4: (-127, -85, -62, -46, -33, -23, -14, -6, 2, 10, 18, 27, 38, 52, 70, 99),
    5: (
        *(-127, -103, -86, -73, -62, -53, -46, -39, -33, -28, -23, -18, -14, -10, -6, -2),
        *(1, 5, 9, 13, 17, 22, 26, 31, 37, 43, 50, 58, 67, 79, 93, 113),
    ),
}
