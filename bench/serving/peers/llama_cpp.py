"""The llama.cpp server with Q8_0 and Q4_0 weights. This server must be set up manually.

The server must be built from source, for example with ``pip install llama-cpp-python[server]``, CMake and a
compiler, which takes about ten minutes on two cores. The scripts that convert the decoder
(``convert_hf_to_gguf.py``) and the vision tower to GGUF are only available in llama.cpp's repository.

    python convert_hf_to_gguf.py bench/work/llava-1.5-shaped-1.3b --outtype q8_0 --outfile model.gguf
    llama-server -m model.gguf --mmproj mmproj.gguf -c 8192 -np 8 --port 8080
    python -m bench --url http://127.0.0.1:8080 --name llama-cpp-q8_0 --bits 8
"""

from __future__ import annotations

import shutil
from pathlib import Path

from bench.record import WORK
from bench.serving.target import Target, Unavailable

__all__ = ["targets"]


def targets(checkpoint: Path) -> list[Target]:
    del checkpoint  # converted manually, see above
    return [_target(kind, bits) for kind, bits in (("q8_0", 8), ("q4_0", 4))]


def _target(kind: str, bits: int) -> Target:
    model, tower = WORK / f"llama-cpp-{kind}.gguf", WORK / "llama-cpp-mmproj.gguf"

    def prepare() -> None:
        if shutil.which("llama-server") is None:
            raise Unavailable("llama-server was not found on the PATH. Build llama.cpp.")
        if not (model.is_file() and tower.is_file()):
            raise Unavailable(
                f"{model.name} and {tower.name} were not found in bench/work. Convert the checkpoint to GGUF."
            )

    return Target(
        name=f"llama-cpp-{kind}",
        title=f"llama.cpp server, {kind.upper()}",
        bits=bits,
        command=lambda port: [
            *("llama-server", "-m", str(model), "--mmproj", str(tower)),
            *("-c", "8192", "-np", "8", "--host", "127.0.0.1", "--port", str(port)),
        ],
        prepare=prepare,
    )
