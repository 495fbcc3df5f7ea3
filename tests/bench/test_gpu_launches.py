"""The Triton kernels of a decoder can be compiled for GPUs, need no stack, and use all multiprocessors.

The checks run in separate processes, because the test process uses Triton's interpreter. None needs a GPU.
"""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.record import RESULTS, ROOT

pytestmark = pytest.mark.e2e
pytest.importorskip("triton", reason="triton is not installed: pip install triton")


RECORDS = sorted((RESULTS / "gpu").glob("kernels-triton-*.json"))
CAPABILITIES = {"80", "86", "89", "90", "100", "120"}


def run_python(*arguments: str, cache: Path) -> subprocess.CompletedProcess[str]:
    """Run Python with compiled instead of interpreted kernels. Warnings are errors."""
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(cache)}
    command = [sys.executable, "-W", "error", *arguments]
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)


def run_program(program: str, *arguments: str, cache: Path) -> Any:
    """Run a Python program that prints JSON."""
    done = run_python("-c", program, *arguments, cache=cache)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def read_results(path: Path) -> dict[str, Any]:
    results: dict[str, Any] = json.loads(path.read_text())["results"]
    return results


def test_the_records_are_those_of_the_current_kernels_and_a_sample_compiles_without_a_warning(
    tmp_path: Path,
) -> None:
    done = run_python("-m", "bench.gpu.aot", "--check", cache=tmp_path)

    assert done.returncode == 0, done.stderr
    assert re.search(r"compiled \d\d of \d\d\d kernels with Triton", done.stdout)


def test_a_stale_record_fails_the_check(tmp_path: Path) -> None:
    path = RECORDS[0]
    record = json.loads(path.read_text())
    by_name = {each["kernel"]: each for each in record["results"]["kernels"]}
    by_name["rms_norm"]["digest"] = "another"
    del by_name["int4_linear"]["resources"]["120"]
    record["results"]["layers"][0]["launches"].pop()
    (tmp_path / path.name).write_text(json.dumps(record))

    for folder, fault in (
        (tmp_path, "record of the current kernels (int4_linear, rms_norm, the launches of a layer)"),
        (tmp_path / "empty", "contains no record of kernels"),
    ):
        command = ("-m", "bench.gpu.aot", "--check", "--every", "100000000", "--folder", str(folder))
        done = run_python(*command, cache=tmp_path)
        assert done.returncode == 1
        assert fault in done.stderr and "Run make kernels." in done.stderr


DIGEST = """
import importlib.util, json, sys
import torch
from bench.gpu.kernel_variant import variant_of
from bench.gpu.launches import META, Launch

def digest(path, size=32):
    spec = importlib.util.spec_from_file_location("module", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    x = torch.empty(64, device=META)
    options = {"SIZE": size, "enable_fp_fusion": True}
    return variant_of(Launch("kernel", module.kernel, (x,), (1,), options)).digest

print(json.dumps([*map(digest, sys.argv[1:]), digest(sys.argv[1], 64)]))
"""
KERNEL = '''
import triton
import triton.language as tl

FACTOR = tl.constexpr(2.0)

@triton.jit
def scaled(x):
    return x * FACTOR

@triton.jit
def kernel(x, SIZE: tl.constexpr):
    """Scale x."""
    at = x + tl.arange(0, SIZE)
    tl.store(at, scaled(tl.load(at)))
'''


def test_a_digest_depends_on_the_code_and_the_arguments_but_not_on_comments(tmp_path: Path) -> None:
    changes = {
        "same": ("", ""),
        "comment": ("@triton.jit\ndef kernel", "# A comment.\n\n@triton.jit\ndef kernel"),
        "docstring": ("Scale x.", "Multiply x."),
        "constant": ("2.0", "3.0"),
        "called function": ("x * FACTOR", "x + FACTOR"),
        "code": ("tl.arange(0, SIZE)", "tl.arange(0, SIZE) + 0"),
    }
    paths = []
    for name, change in changes.items():
        paths.append(tmp_path / f"{name}.py")
        paths[-1].write_text(KERNEL.replace(*change))

    digests = run_program(DIGEST, *map(str, paths), cache=tmp_path)

    assert len(set(digests[:3])) == 1
    assert len(set(digests[2:])) == 5


SHARED_KIB = {"80": 163, "86": 99, "89": 99, "90": 227, "100": 227, "120": 99}  # per program
KERNELS = {
    *("rms_norm", "silu_and_mul", "rope_and_cache", "decode_attention", "paged_attention"),
    *("int4_linear", "int4_dequantize", "rms_norm_w8a8", "silu_and_mul_w8a8", "quantize_w8a8"),
    *("linear_w8a8", "scale_products"),
}


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: str(path.stem))
def test_no_kernel_spills_registers_on_any_gpu(path: Path) -> None:
    kernels = read_results(path)["kernels"]

    assert {each["kernel"] for each in kernels} == KERNELS
    assert {each["precision"] for each in kernels} == {"fp32", "fp16", "bf16", "w4a16", "w8a8", "fp8"}
    for kernel in kernels:
        assert kernel["resources"].keys() == CAPABILITIES - (
            {"80", "86"} if kernel["precision"] == "fp8" else set()
        )
        for capability, resources in kernel["resources"].items():
            assert resources["stack_bytes"] == 0, (kernel, capability)
            assert resources["shared_bytes"] <= SHARED_KIB[capability] << 10, (kernel, capability)


MAX_LAUNCHES = {"fp16": 8, "bf16": 8, "fp32": 8, "int4": 8, "w4a16": 8, "w8a8": 9, "fp8": 9}
MIN_PROGRAMS = 100  # on 132 multiprocessors


def test_a_layer_launches_few_kernels_which_use_all_multiprocessors_for_a_single_sequence() -> None:
    layers = read_results(RECORDS[0])["layers"]

    assert len(layers) == 2 * len(MAX_LAUNCHES) * 2 * 2 * 2
    for layer in layers:
        launches = {each["name"]: math.prod(each["grid"]) for each in layer["launches"]}
        # In a mixed step, RoPE and writing to the KV cache are a launch of their own.
        assert len(layer["launches"]) == MAX_LAUNCHES[layer["precision"]] + layer["is_mixed"], layer
        assert "decode_attention" in launches
        for name, num_programs in launches.items():
            if name in KERNELS and ("linear" in name or "attention" in name):
                assert num_programs >= MIN_PROGRAMS, (layer, name)


SIMULATE = """
import json, random, sys
from bench.gpu.launches import CONTEXT, TEXT_CONFIGS, make_decoder, record_prefill, record_step
from bench.gpu.kernel_variant import variant_of
from llava_worker.engine.startup.warmup import sizes_up_to

precision, is_int8_cache, num_steps = sys.argv[1], sys.argv[2] == "True", int(sys.argv[3])
MAX_SEQUENCES, MAX_TOKENS = 64, 1024
text = TEXT_CONFIGS["7b"]
decoder, random = make_decoder(text, precision), random.Random(0)

def keys_of(launches):
    return {variant_of(each).key for each in launches if each.kernel}

compiled = set()
for size in sizes_up_to(MAX_SEQUENCES):
    compiled |= keys_of(record_prefill(decoder, text, [1] * size, is_int8_cache=is_int8_cache))
    for is_mixed in (False, True):
        compiled |= keys_of(record_step(decoder, text, size, is_int8_cache=is_int8_cache, is_mixed=is_mixed))
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


@pytest.mark.parametrize(
    ("precision", "is_int8_cache"),
    [("fp16", False), ("w4a16", True), ("w8a8", False), ("fp8", True), ("bf16", True)],
)
def test_no_kernel_is_compiled_in_3000_steps_after_the_warm_up(
    tmp_path: Path, precision: str, is_int8_cache: bool
) -> None:
    num_compiled, late = run_program(SIMULATE, precision, str(is_int8_cache), "600", cache=tmp_path)

    assert late == []
    assert 6 <= num_compiled <= 15
