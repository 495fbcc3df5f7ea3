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
needs_triton = pytest.importorskip("triton", reason="triton is not installed: pip install triton")


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
kernels = {each.name: each for each in launches if each.kernel}
resources = {name: compile_launch(each, capability) for name, each in kernels.items()}
print(json.dumps({name: dataclasses.asdict(each) for name, each in resources.items()}))
"""


@pytest.mark.parametrize(("capability", "is_int8_cache"), [(80, False), (90, True)])
def test_kernels_compile_without_a_warning_and_do_not_spill_registers(
    tmp_path: Path, capability: int, is_int8_cache: bool
) -> None:
    resources = run_program(COMPILE, str(capability), "fp16", str(is_int8_cache), cache=tmp_path)

    assert resources.keys() == {
        "rms_norm",
        "silu_and_mul",
        "rope_and_cache",
        "decode_attention",
        "paged_attention",
    }
    assert {each["stack_bytes"] for each in resources.values()} == {0}
    # All of these GPUs have at least 96 KiB of shared memory.
    assert max(each["shared_bytes"] for each in resources.values()) <= 96 << 10
