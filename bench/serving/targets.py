"""The servers that can be benchmarked: llava-serve in each precision, and other servers."""

from __future__ import annotations

import compileall
import sys
from contextlib import suppress
from pathlib import Path

import llava_cli
import llava_client
import llava_server
import llava_wire
import llava_worker
from llava_worker.model.cpu.build import KernelsUnavailable
from llava_worker.model.cpu.load import capabilities, load, variant_for

from bench.record import WORK
from bench.serving.peers import llama_cpp, openvino_peer, transformers_serve, vllm
from bench.serving.served_model import ServedModel
from bench.serving.target import Target

__all__ = ["LLAVA_SERVE", "all_targets"]

LLAVA_SERVE = "llava-serve"


def all_targets(model: ServedModel) -> dict[str, Target]:
    """Return all targets, keyed by name, starting with llava-serve. Does not install or start anything."""
    # Including the scales of the weights (docs/performance/precision.md).
    bits = {"fp32": 32, "bf16": 16, "int8": 8, "int4": model.shape.mean_bits(4.25, down_proj=5.25, lm_head=8)}
    llava_serve = [_llava_serve(model, precision, bits[precision]) for precision in bits]
    peers = [vllm, llama_cpp, openvino_peer, transformers_serve]
    others = [target for peer in peers for target in peer.targets(model)]
    return {target.name: target for target in (*llava_serve, *others)}


def _llava_serve(model: ServedModel, precision: str, bits: float) -> Target:
    checkpoint = model.folder
    name = f"{LLAVA_SERVE}-{precision}"
    program = str(Path(sys.executable).parent / "llava-serve")
    options = ["--model", str(checkpoint), "--precision", precision, "--device", "cpu", "--verbose"]
    cache = WORK / "caches" / f"{name}-{checkpoint.name}"
    return Target(
        name=name,
        title=f"llava-serve, {precision}",
        bits=bits,
        command=lambda port: [program, "up", *options, "--port", str(port)],
        weights=checkpoint,
        cache=cache,
        stored="*.weights",
        ready_path="/readyz",
        prepare=_compile,
        environment={
            # A model with random weights repeats itself, so nearly every draft token would be accepted.
            "LLAVA_SPECULATION": "off",
            "LLAVA_WEIGHTS_CACHE": str(cache),
            # Keys and values are bf16, except with fp32 weights.
            "LLAVA_KV_CACHE_MB": str(model.kv_mib * (2 if precision == "fp32" else 1)),
        },
    )


def _compile() -> None:
    """Compile the kernels and the bytecode, which an installed wheel contains, but a checkout may not."""
    with suppress(KernelsUnavailable):  # the worker has a fallback, which is then measured
        load(variant_for(capabilities()))
    for package in (llava_cli, llava_client, llava_server, llava_wire, llava_worker):
        compileall.compile_dir(package.__path__[0], quiet=1)
