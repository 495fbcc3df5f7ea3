"""The Triton kernels of a decoder can be compiled for GPUs, need no stack, and use all multiprocessors.

The checks run in separate processes, because the test process uses Triton's interpreter. None needs a GPU.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.record import ROOT

pytestmark = pytest.mark.e2e
pytest.importorskip("triton", reason="triton is not installed: pip install triton")


def run_program(program: str, *arguments: str, cache: Path) -> Any:
    """Run a Python program that prints JSON, with compiled instead of interpreted kernels."""
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(cache)}
    command = [sys.executable, "-W", "error", "-c", program, *arguments]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


COMPILE = """
import dataclasses, json, sys
from bench.gpu.launches import TEXT_CONFIGS, compile_launch, make_decoder, record_prefill, record_step

capability, precision, is_int8_cache = int(sys.argv[1]), sys.argv[2], sys.argv[3] == "True"
text = TEXT_CONFIGS["7b"]
decoder = make_decoder(text, precision)
launches = record_step(decoder, text, 1, is_int8_cache=is_int8_cache)
launches += record_prefill(decoder, text, [1, 1, 300], is_int8_cache=is_int8_cache)
launches += record_step(decoder, text, 64, is_int8_cache=is_int8_cache)
kernels = {}
for each in launches:
    if each.kernel:
        kernels[f"{each.name} {each.options.get('M', '')}".strip()] = each
resources = {name: compile_launch(each, capability) for name, each in kernels.items()}
print(json.dumps({name: dataclasses.asdict(each) for name, each in resources.items()}))
"""
ATTENTION = {"rope_and_cache", "decode_attention 16", "paged_attention 64"}
NORMS = {"rms_norm", "silu_and_mul"}
INT4 = {"int4_linear 16", "int4_linear 64", "int4_dequantize"}
W8A8 = {"rms_norm_w8a8", "silu_and_mul_w8a8", "quantize_w8a8", "linear_w8a8 16", "linear_w8a8 64"}


@pytest.mark.parametrize(
    ("capability", "precision", "is_int8_cache", "expected"),
    [
        (80, "bf16", False, ATTENTION | NORMS),
        (90, "w4a16", True, ATTENTION | NORMS | INT4),
        (90, "fp8", False, ATTENTION | {"rms_norm"} | W8A8),
        (80, "w8a8", False, ATTENTION | {"rms_norm"} | W8A8 | {"scale_products"}),
    ],
)
def test_kernels_compile_without_a_warning_and_do_not_spill_registers(
    tmp_path: Path, capability: int, precision: str, is_int8_cache: bool, expected: set[str]
) -> None:
    resources = run_program(COMPILE, str(capability), precision, str(is_int8_cache), cache=tmp_path)

    assert resources.keys() == expected
    assert {name: each["stack_bytes"] for name, each in resources.items() if each["stack_bytes"]} == {}
    limit = {80: 163, 90: 227}[capability] << 10  # bytes of shared memory per program
    assert max(each["shared_bytes"] for each in resources.values()) <= limit


COUNT = """
import json
from itertools import product
from bench.gpu.launches import TEXT_CONFIGS, launches_per_layer

counted = []
PRECISIONS = ("bf16", "w4a16", "w8a8", "fp8")
for size, precision, rows, is_int8 in product(TEXT_CONFIGS, PRECISIONS, (1, 128), (False, True)):
    launches = launches_per_layer(TEXT_CONFIGS[size], precision, rows, is_int8_cache=is_int8)
    counted.append([size, precision, rows, [(each.name, each.num_programs) for each in launches]])
print(json.dumps(counted))
"""
MAX_LAUNCHES = {"bf16": 8, "w4a16": 10, "w8a8": 12, "fp8": 12}
MIN_PROGRAMS = 100  # on 132 multiprocessors


def test_a_layer_launches_few_kernels_which_use_all_multiprocessors_for_a_single_sequence(
    tmp_path: Path,
) -> None:
    counted = run_program(COUNT, cache=tmp_path)

    assert len(counted) == 32
    for size, precision, rows, launches in counted:
        names = [name for name, _ in launches]
        assert len(launches) <= MAX_LAUNCHES[precision], (size, precision, rows, names)
        assert "decode_attention" in names
        for name, num_programs in launches:
            if "linear" in name or "attention" in name:
                assert num_programs >= MIN_PROGRAMS, (size, precision, rows, name)


SIMULATE = """
import json, random, sys
from bench.gpu.launches import CONTEXT, TEXT_CONFIGS, make_decoder, record_prefill, record_step
from bench.gpu.launches import specialization_key
from llava_worker.engine.startup.warmup import sizes_up_to

precision, is_int8_cache, num_steps = sys.argv[1], sys.argv[2] == "True", int(sys.argv[3])
MAX_SEQUENCES, MAX_TOKENS = 64, 1024
text = TEXT_CONFIGS["7b"]
decoder, random = make_decoder(text, precision), random.Random(0)

def keys_of(launches):
    return {specialization_key(each) for each in launches if each.kernel}

compiled = set()
for size in sizes_up_to(MAX_SEQUENCES):
    compiled |= keys_of(record_prefill(decoder, text, [1] * size, is_int8_cache=is_int8_cache))
    compiled |= keys_of(record_step(decoder, text, size, is_int8_cache=is_int8_cache))
for size in sizes_up_to(MAX_TOKENS):
    compiled |= keys_of(record_prefill(decoder, text, [size], is_int8_cache=is_int8_cache))

late = set()
for step in range(num_steps):
    rows = [1] * random.randint(0, MAX_SEQUENCES // 2)
    rows += [random.choice([2, 5, random.randint(2, 300)]) for _ in range(random.randint(0, 3))]
    context = random.randint(max(rows or [1]), CONTEXT)
    launches = record_prefill(decoder, text, rows or [1], context=context, is_int8_cache=is_int8_cache)
    late |= keys_of(launches) - compiled
print(json.dumps([len(compiled), sorted(late)]))
"""


@pytest.mark.parametrize(("precision", "is_int8_cache"), [("fp16", False), ("w4a16", True), ("w8a8", False)])
def test_no_kernel_is_compiled_in_3000_steps_after_the_warm_up(
    tmp_path: Path, precision: str, is_int8_cache: bool
) -> None:
    num_compiled, late = run_program(SIMULATE, precision, str(is_int8_cache), "1000", cache=tmp_path)

    assert late == []
    assert 6 <= num_compiled <= 14
