"""The Triton kernels can be compiled for NVIDIA GPUs. This does not require a GPU.

The kernels are compiled in a separate process, because the test process uses Triton's interpreter.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from llava_worker.model.attention.triton_paged_attention import paged_attention
from llava_worker.model.kernels.triton_fused import rms_norm, rope, rope_and_cache, silu_and_mul
from llava_worker.model.kernels.triton_int4_linear import int4_linear

def compile(kernel, types, constants, capability):
    signature = {**types, **dict.fromkeys(constants, "constexpr")}
    constexprs = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constexprs)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32))
    is_compiled, uses_tensor_cores = len(compiled.asm["cubin"]) > 0, "mma" in compiled.asm["ptx"]
    print(kernel.__name__, capability, is_compiled, uses_tensor_cores, compiled.metadata.shared)

def compile_attention(dtype, capability, queries, lanes, positions, window):
    types = {name: "*" + dtype for name in ("out", "q", "keys", "values")}
    types |= {name: "*i32" for name in ("starts", "contexts", "tables")}
    types |= {"scale": "fp32", "q_stride": "i32", "table_stride": "i32"}
    constants = dict(KV_HEADS=8, GROUP=4, HEAD_DIM=128, BLOCK_SIZE=16, D=128)
    sizes = dict(QUERIES=queries, M=lanes, N=positions, WINDOW=window)
    compile(paged_attention, types, {**constants, **sizes}, capability)

def compile_linear(dtype, capability, rows, outputs):
    types = {"y": "*" + dtype, "x": "*" + dtype, "packed": "*u8", "scales": "*bf16", "bias": "*fp32"}
    types |= dict.fromkeys(("rows", "inputs", "outputs", "half"), "i32")
    constants = dict(HAS_BIAS=True, GROUP=64, PANEL=32, M=rows, N=outputs, K=64)
    compile(int4_linear, types, constants, capability)

compile_attention("bf16", 80, 1, 16, 64, 0)
compile_attention("fp16", 90, 16, 64, 64, 4096)
compile_attention("fp32", 80, 1, 16, 32, 0)
compile_linear("fp16", 80, 16, 32)
compile_linear("bf16", 90, 64, 128)

def compile_fused(dtype, capability):
    pointer = "*" + dtype
    norm = dict.fromkeys(("out", "total", "x", "residual", "weight"), pointer)
    norm |= {"size": "i32", "eps": "fp32"}
    compile(rms_norm, norm, dict(HAS_RESIDUAL=True, N=8192), capability)
    compile(silu_and_mul, {"out": pointer, "x": pointer, "size": "i32"}, dict(N=1024), capability)
    rotated = dict.fromkeys(("out", "x", "cos", "sin"), pointer) | {"x_stride": "i32"}
    compile(rope, rotated, dict(HEADS=40, HALF=64, H=64, N=64), capability)
    cached = dict.fromkeys(("q", "keys", "values", "qkv", "cos", "sin"), pointer)
    sizes = dict(HEADS=32, KV_HEADS=8, HALF=64, H=8, N=64)
    compile(rope_and_cache, {**cached, "slots": "*i64", "qkv_stride": "i32"}, sizes, capability)

compile_fused("fp16", 80)
compile_fused("bf16", 90)
"""


@pytest.mark.e2e
def test_kernels_compile_for_ampere_and_hopper_and_use_tensor_cores(tmp_path: Path) -> None:
    pytest.importorskip("triton", reason="triton is not installed: pip install triton")
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}

    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert [line[:4] for line in lines] == [
        ["paged_attention", "80", "True", "True"],
        ["paged_attention", "90", "True", "True"],
        ["paged_attention", "80", "True", "False"],  # fp32 inputs are not rounded to TF32
        ["int4_linear", "80", "True", "True"],
        ["int4_linear", "90", "True", "True"],
        *[
            [name, capability, "True", "False"]
            for capability in ("80", "90")
            for name in ("rms_norm", "silu_and_mul", "rope", "rope_and_cache")
        ],
    ]
    # All of these GPUs have at least 96 KiB of shared memory.
    assert max(int(line[4]) for line in lines) <= 96 << 10
