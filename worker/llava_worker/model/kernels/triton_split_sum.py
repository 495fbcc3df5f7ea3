"""Sums of partial matrix products that several programs compute (split-K).

If a product has few rows, a program per tile of outputs would not use all multiprocessors of the GPU. Several
programs therefore compute the same tile, each for some of the inputs. The last one to finish adds up the
results, always in the same order, so that the sum does not depend on the order in which they finish.

This module requires the triton package, so import it only right before launching a kernel.
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["sum_of_splits"]


@triton.jit
def sum_of_splits(
    acc,
    partials,
    counters,
    tile,
    split,
    splits,
    M: tl.constexpr,
    N: tl.constexpr,
    MAX_SPLITS: tl.constexpr,
):
    """Return the sum of ``acc`` [M, N] of all splits of a tile, and whether this program has to store it.

    ``partials`` [tiles * splits, M, N] has the same dtype as ``acc``. ``counters`` is int32 [tiles], all 0.
    """
    is_last = True
    if splits > 1:
        element = tl.arange(0, M)[:, None] * N + tl.arange(0, N)[None, :]
        first = partials + (tile * splits).to(tl.int64) * (M * N) + element
        tl.store(first + split * (M * N), acc)
        tl.debug_barrier()  # the atomic operation of one thread publishes the stores of all threads
        is_last = tl.atomic_add(counters + tile, 1, sem="acq_rel") == splits - 1
        if is_last:
            acc = tl.zeros([M, N], acc.dtype)
            for other in tl.static_range(MAX_SPLITS):
                is_used = element < (splits - other) * (M * N)
                # Other multiprocessors have written the results, so loads bypass the first-level cache.
                acc += tl.load(first + other * (M * N), mask=is_used, other=0, cache_modifier=".cg")
            tl.store(counters + tile, 0)
    return acc, is_last
