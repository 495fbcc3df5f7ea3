"""A CPU KV cache faults in its memory as it is needed and preserves its contents."""

from __future__ import annotations

from itertools import takewhile
from pathlib import Path

import pytest
import torch
from llava_worker.model.attention.kv_cache import KVCache, KVCacheSpec
from llava_worker.model.kernels.torch_impl import TorchKernels
from llava_worker.model.layers.linear import LinearShape
from llava_worker.model.lazy_memory import lazy_zeros, prefault_columns, zeros
from llava_worker.model.quantization.quantized_linear import QuantizedLinear

from tests.worker.model.resident_memory import resident_bytes

IS_INT8 = pytest.mark.parametrize("is_int8", [False, True], ids=["exact", "int8"])


def make_cache(num_slots: int, *, is_int8: bool = False) -> KVCache:
    spec = KVCacheSpec(num_slots // 4, 4, 2, 4, 64, torch.bfloat16, is_int8)
    return KVCache(spec, torch.device("cpu"))


def resident_fraction(cache: KVCache) -> float:
    return sum(map(resident_bytes, cache._tensors())) / cache.spec.num_bytes


def mapping_flags(tensor: torch.Tensor) -> str:
    """Return the permissions of the mapping, which end with s (shared) or p (private)."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        addresses, flags, *_ = line.split()
        first, last = (int(address, 16) for address in addresses.split("-"))
        if first <= tensor.data_ptr() < last:
            return flags
    raise AssertionError("the tensor is not mapped")


def test_memory_of_zeros_is_not_resident() -> None:
    tensor = zeros((1024, 1024), torch.uint8, torch.device("cpu"))
    assert resident_bytes(tensor) == 0
    assert not tensor.any()


@IS_INT8
def test_only_the_requested_slots_become_resident(is_int8: bool) -> None:
    cache = make_cache(1 << 16, is_int8=is_int8)
    assert resident_fraction(cache) < 1 / 8
    cache.prefault(1 << 14)
    assert 1 / 4 <= resident_fraction(cache) < 1 / 2
    assert not cache.prefault_more(1 << 14)
    num_calls = sum(1 for _ in takewhile(bool, (cache.prefault_more(1 << 15) for _ in range(1000))))
    assert 1 / 2 <= resident_fraction(cache) < 3 / 4
    assert num_calls > 1  # the slots are not faulted in all at once


@IS_INT8
def test_more_slots_than_the_cache_has_make_all_of_it_resident(is_int8: bool) -> None:
    cache = make_cache(1 << 14, is_int8=is_int8)
    cache.prefault(1 << 30)
    assert resident_fraction(cache) == 1


@IS_INT8
def test_prefaulting_preserves_the_contents(is_int8: bool) -> None:
    cache, slots = make_cache(1 << 12, is_int8=is_int8), torch.arange(1 << 12)
    cache.prefault(16)
    k, v = torch.randn(2, 1 << 12, 4, 64).bfloat16()
    cache.write(1, slots, k, v)
    written = torch.stack(cache.gather(1, slots))
    assert cache.prefault_more(1 << 12)
    cache.prefault(1 << 12)
    assert torch.equal(torch.stack(cache.gather(1, slots)), written)


@IS_INT8
def test_the_cache_is_in_shared_memory_whose_small_pages_are_faulted_in_quickly(is_int8: bool) -> None:
    for tensor in make_cache(1 << 16, is_int8=is_int8)._tensors():
        assert mapping_flags(tensor).endswith("s")


def test_quantized_weights_are_in_private_memory_which_can_have_huge_pages() -> None:
    shape = LinearShape.plain(2048, 2048)
    layer = QuantizedLinear(shape, bits=8, kernels=TorchKernels(), device=torch.device("cpu"))
    assert mapping_flags(layer.packed).endswith("p")
    assert resident_bytes(layer.packed.data) == 0


def test_every_page_of_the_columns_is_faulted_in() -> None:
    zeros = lazy_zeros((3, 1000, 2048), torch.uint8)
    assert sum(1 for _ in prefault_columns(zeros, 0, 1000)) == 3  # chunks of 2 MiB
    assert resident_bytes(zeros) == zeros.nbytes
    assert not zeros.any()
    assert sum(1 for _ in prefault_columns(zeros, 1000, 1000)) == 0


def test_no_page_after_the_columns_is_faulted_in() -> None:
    zeros = lazy_zeros((1, 16 << 10, 4096), torch.uint8)
    assert sum(1 for _ in prefault_columns(zeros, 0, 1024)) == 2
    assert resident_bytes(zeros[:, :1024]) == 4 << 20
    assert resident_bytes(zeros) <= 8 << 20  # the operating system may round up to huge pages
