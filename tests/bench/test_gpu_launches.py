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


def check_faults(folder: Path, cache: Path) -> list[str]:
    """Check the records in a folder without compiling kernels. Return the faults that are found."""
    command = ("-m", "bench.gpu.aot", "--check", "--every", "100000000", "--folder", str(folder))
    done = run_python(*command, cache=cache)
    assert done.returncode == 1
    return [line for line in done.stderr.splitlines() if line.startswith(("kernels-triton-", str(folder)))]


def test_a_stale_or_inconsistent_record_fails_the_check(tmp_path: Path) -> None:
    """This includes the record of a version of Triton that is not installed."""
    stale, altered = (tmp_path / path.name for path in RECORDS)
    record = json.loads(RECORDS[0].read_text())
    by_name = {each["kernel"]: each for each in record["results"]["kernels"]}
    by_name["rms_norm"]["digest"] = "another"
    by_name["silu_and_mul"]["variant"] = "another"
    del by_name["int4_linear"]["resources"]["120"]
    record["results"]["layers"][0]["launches"].pop()
    stale.write_text(json.dumps(record))
    record = json.loads(RECORDS[1].read_text())
    record["results"]["kernels"][0]["resources"]["90"]["stack_bytes"] = 8
    record["results"]["kernels"].append({**record["results"]["kernels"][1]})
    record["versions"]["triton"] = "1.0"
    altered.write_text(json.dumps(record))
    altered.with_suffix(".md").write_text(RECORDS[1].with_suffix(".md").read_text())

    faults = check_faults(tmp_path, tmp_path)

    changed = "int4_linear, rms_norm, silu_and_mul, the launches of a layer"
    spilled = record["results"]["kernels"][0]
    assert [fault[: fault.index(". ")] for fault in faults if " spills " not in fault] == [
        f"{stale.name} is not the record of the current kernels ({changed})",
        f"{stale.stem}.md is not the table of {stale.name}",
        f"{altered.name} was recorded with Triton 1.0",
        f"{altered.name} contains kernels more than once",
        f"{altered.stem}.md is not the table of {altered.name}",
    ]
    [spill] = [fault for fault in faults if " spills " in fault]
    assert spill.startswith(f"{altered.name}: {spilled['kernel']} ({spilled['precision']}, ")
    assert "spills registers on sm_90: {" in spill


def test_a_folder_without_records_fails_the_check(tmp_path: Path) -> None:
    [fault] = check_faults(tmp_path / "empty", tmp_path)
    assert fault.endswith("contains no record of kernels. Run make kernels.")


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


LAUNCHES = {  # by the number of rows
    **dict.fromkeys(("fp16", "bf16", "fp32"), {1: 8, 128: 8, 1024: 8}),
    "w4a16": {1: 8, 128: 8, 1024: 12},  # above 256 rows, weights are dequantized
    "int4": {1: 8, 128: 20, 1024: 20},  # above 4 rows, bitsandbytes may dequantize weights and their scales
    "w8a8": {1: 9, 128: 9, 1024: 13},  # above 256 rows, torch computes the products
    "fp8": {1: 9, 128: 9, 1024: 9},
}
MIN_PROGRAMS = 100  # on 132 multiprocessors


def test_a_layer_launches_few_kernels_which_use_all_multiprocessors_for_a_single_sequence() -> None:
    layers = read_results(RECORDS[0])["layers"]

    assert len(layers) == 2 * len(LAUNCHES) * 9
    for layer in layers:
        launches = {each["name"]: math.prod(each["grid"]) for each in layer["launches"]}
        # In a mixed step, RoPE and writing to the KV cache are a launch of their own.
        expected = LAUNCHES[layer["precision"]][layer["rows"]] + layer["is_mixed"]
        assert len(layer["launches"]) == expected, layer
        assert "decode_attention" in launches
        for name, num_programs in launches.items():
            if name in KERNELS and ("linear" in name or "attention" in name):
                assert num_programs >= MIN_PROGRAMS, (layer, name)


SIMULATE = """
import json, sys
from bench.gpu.launches import available_backends, gpu_precision
from bench.gpu.simulated_engine import SimulatedEngine

results = []
for name in sys.argv[2:]:
    precision, cache = name.split("/")
    is_int8 = cache == "int8"
    for backend in available_backends(gpu_precision(precision).dtype, is_int8_cache=is_int8):
        engine = SimulatedEngine(precision, backend, is_int8_cache=is_int8)
        needed = engine.run(int(sys.argv[1]))
        results.append([name, backend.block_size, sorted(engine.compiled), sorted(needed)])
print(json.dumps(results))
"""
NUM_STEPS = 3000  # of all engines together
NUM_ENGINES = 8


@pytest.mark.parametrize(
    ("served", "block_sizes"),
    [
        (("fp16/auto", "fp32/auto", "bf16/int8"), [256, 16, 16, 16]),
        pytest.param(
            ("w8a8/auto", "w4a16/int8", "fp8/int8"), [256, 16, 16, 16], marks=pytest.mark.exhaustive
        ),
    ],
    ids=["16 and 32 bits", "quantized"],
)
def test_no_kernel_is_compiled_in_3000_steps_after_the_warm_up(
    tmp_path: Path, served: tuple[str, ...], block_sizes: list[int]
) -> None:
    """The steps are those of engines with random requests. 16-bit caches are used with two block sizes."""
    engines = run_program(SIMULATE, str(NUM_STEPS // NUM_ENGINES), *served, cache=tmp_path)

    assert [block_size for _, block_size, *_ in engines] == block_sizes
    for name, block_size, compiled, needed in engines:
        assert not set(needed) - set(compiled), (name, block_size)
        assert {"decode_attention", "rope_and_cache"} <= {key.split()[0] for key in needed}
    # All of them need different variants, so this test would find one that is not compiled.
    assert len({tuple(needed) for *_, needed in engines}) == NUM_ENGINES // 2
