"""Everybody who is measured, by name."""

from __future__ import annotations

import sys
from pathlib import Path

from bench.serving.contender import Contender
from bench.serving.peers import llama_cpp, openvino_peer, transformers_serve, vllm

__all__ = ["OURS", "all_contenders"]

OURS = "llava-serve"
_BITS = {"fp32": 32, "bf16": 16, "int8": 8, "int4": 4}


def all_contenders(checkpoint: Path) -> dict[str, Contender]:
    """Ours in each precision, then the others. Nothing is installed or started to find out."""
    ours = [_llava_serve(checkpoint, precision, bits) for precision, bits in _BITS.items()]
    peers = [transformers_serve, openvino_peer, vllm, llama_cpp]
    others = [contender for peer in peers for contender in peer.contenders(checkpoint)]
    return {contender.name: contender for contender in (*ours, *others)}


def _llava_serve(checkpoint: Path, precision: str, bits: int) -> Contender:
    program = str(Path(sys.executable).parent / "llava-serve")
    options = ["--model", str(checkpoint), "--precision", precision, "--device", "cpu", "--verbose"]
    return Contender(
        name=f"{OURS}-{precision}",
        title=f"llava-serve, {precision}",
        bits=bits,
        command=lambda port: [program, "up", *options, "--port", str(port)],
        ready_path="/readyz",
        # Random weights repeat themselves, so nearly every draft would be right, as with no real model.
        environment={"LLAVA_SPECULATION": "off"},
    )
