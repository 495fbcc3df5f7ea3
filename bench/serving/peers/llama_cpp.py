"""The llama.cpp server with Q8_0, Q4_0 and Q4_K_M weights.

The server is built from the sources in the sdist of the PyPI package llama-cpp-python, with all instruction
sets of this CPU. This takes about six minutes on two idle cores.
"""

from __future__ import annotations

import os
import sys
import tarfile
import tempfile
from pathlib import Path

from bench.record import WORK
from bench.serving.conversion import Conversion
from bench.serving.peers.environment import ensure_environment, installed, run_or_unavailable
from bench.serving.served_model import ServedModel
from bench.serving.target import Target

__all__ = ["targets"]

_NAME = "llama-cpp"
_SDIST = "llama-cpp-python==0.3.36"
_SOURCE = WORK / _NAME
_PROGRAMS = _SOURCE / "build" / "bin"
_CONVERTER = Path(__file__).with_name("gguf_files.py")
_OPTIONS = ("-DCMAKE_BUILD_TYPE=Release", "-DGGML_NATIVE=ON", "-DBUILD_SHARED_LIBS=OFF")
_OMITTED = ("BUILD_TESTS", "BUILD_EXAMPLES", "BUILD_APP", "USE_PREBUILT_UI", "OPENSSL")
_BITS = {"q8_0": 8.5, "q4_0": 4.5, "q4_k_m": 4.85}  # per weight, including scales


def targets(model: ServedModel) -> list[Target]:
    return [_target(model, kind) for kind in _BITS]


def _target(model: ServedModel, kind: str) -> Target:
    weights, tower = _file(model, kind), _file(model, "mmproj")

    def prepare() -> None:
        ensure_environment(_NAME, ("gguf", "cmake"))
        if not (_PROGRAMS / "llama-quantize").is_file():
            _build()

    def command(port: int) -> list[str]:
        files = ["-m", str(weights), "--mmproj", str(tower)]
        sizes = ["-c", str(model.kv_tokens), "-np", str(model.num_at_once)]
        # The prompts of finished requests are not stored: no workload sends them again.
        options = ["--threads", str(len(os.sched_getaffinity(0))), "--flash-attn", "on", "--cache-ram", "0"]
        program = str(_PROGRAMS / "llama-server")
        return [program, *files, *sizes, *options, "--host", "127.0.0.1", "--port", str(port)]

    return Target(
        name=f"llama-cpp-{kind}",
        title=f"llama.cpp server, {kind.upper()}",
        bits=_BITS[kind],
        command=command,
        weights=weights,
        prepare=prepare,
        conversion=_conversion(model, kind),
        packages=lambda: {"llama-cpp-python": _SDIST.partition("==")[2], **installed(_NAME, ("gguf",))},
    )


def _file(model: ServedModel, kind: str) -> Path:
    return WORK / f"{model.folder.name}-{kind}.gguf"


def _download() -> None:
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "llama-cpp-python"]
    with tempfile.TemporaryDirectory(dir=WORK) as folder:
        run_or_unavailable([*pip, "--dest", folder, _SDIST])
        with tarfile.open(next(Path(folder).glob("*.tar.gz"))) as archive:
            archive.extractall(folder, filter="data")
        next(Path(folder).glob("*/vendor/llama.cpp")).rename(_SOURCE)


def _build() -> None:
    if not _SOURCE.is_dir():
        _download()
    cmake = str(WORK / f"venv-{_NAME}" / "bin" / "cmake")
    build = str(_SOURCE / "build")
    omitted = [f"-DLLAMA_{name}=OFF" for name in _OMITTED]
    run_or_unavailable([cmake, "-S", str(_SOURCE), "-B", build, *_OPTIONS, *omitted])
    jobs = ["--parallel", str(len(os.sched_getaffinity(0)))]
    run_or_unavailable([cmake, "--build", build, "--target", "llama-server", "llama-quantize", *jobs])


def _conversion(model: ServedModel, kind: str) -> Conversion:
    """Return the conversion to a type of weights.

    The other types are quantized from Q8_0, because the weights are random.
    """
    original, target = _file(model, "q8_0"), _file(model, kind)
    python = str(WORK / f"venv-{_NAME}" / "bin" / "python")
    files = [str(original), str(_file(model, "mmproj"))]
    to_q8_0 = Conversion(
        original, lambda: run_or_unavailable([python, str(_CONVERTER), str(model.folder), *files])
    )
    if kind == "q8_0":
        return to_q8_0
    quantize = [str(_PROGRAMS / "llama-quantize"), "--allow-requantize", str(original), str(target)]
    return Conversion(target, lambda: run_or_unavailable([*quantize, kind.upper()]), to_q8_0)
