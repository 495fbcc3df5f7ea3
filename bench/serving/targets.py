"""The servers that can be benchmarked: llava-serve in each precision, and other servers."""

from __future__ import annotations

import sys
from pathlib import Path

from bench.serving.peers import llama_cpp, openvino_peer, transformers_serve, vllm
from bench.serving.target import Target

__all__ = ["LLAVA_SERVE", "all_targets"]

LLAVA_SERVE = "llava-serve"
_BITS = {"fp32": 32, "bf16": 16, "int8": 8, "int4": 4}


def all_targets(checkpoint: Path) -> dict[str, Target]:
    """Return all targets, keyed by name, starting with llava-serve. Does not install or start anything."""
    llava_serve = [_llava_serve(checkpoint, precision, bits) for precision, bits in _BITS.items()]
    peers = [transformers_serve, openvino_peer, vllm, llama_cpp]
    others = [target for peer in peers for target in peer.targets(checkpoint)]
    return {target.name: target for target in (*llava_serve, *others)}


def _llava_serve(checkpoint: Path, precision: str, bits: int) -> Target:
    program = str(Path(sys.executable).parent / "llava-serve")
    options = ["--model", str(checkpoint), "--precision", precision, "--device", "cpu", "--verbose"]
    return Target(
        name=f"{LLAVA_SERVE}-{precision}",
        title=f"llava-serve, {precision}",
        bits=bits,
        command=lambda port: [program, "up", *options, "--port", str(port)],
        ready_path="/readyz",
        # A model with random weights repeats itself, so nearly every draft token would be accepted.
        environment={"LLAVA_SPECULATION": "off"},
    )
