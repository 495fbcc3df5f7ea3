"""``python -m bench.gpu.aot``: compile all kernels of a decoder ahead of time, without a GPU.

    python -m bench.gpu.aot             compile all kernels and write the record (5 minutes)
    python -m bench.gpu.aot --check     check the records, and compile every 20th kernel again

For each variant of a kernel and each compute capability, the record contains the registers per thread, the
stack per thread (above 0 if registers are spilled) and the shared memory per program. For each launch of a
layer with 1 and 128 rows, it contains the number of programs on a GPU with 132 multiprocessors.

There is a record for each tested version of Triton (``make kernels``), as JSON and as a table. The check
fails if a record is not that of the current kernels, if it contains a spilled register, or if its table
differs. It recompiles other kernels each day, but only with the installed version of Triton.
"""

from __future__ import annotations

import os

os.environ["TRITON_INTERPRET"] = "0"  # read when Triton is imported

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

import triton

from bench.gpu.decoder_kernels import DecoderKernel, decoder_kernels, launch_counts
from bench.gpu.kernel_table import kernel_tables
from bench.gpu.kernel_variant import compile_variant
from bench.record import RESULTS, write_record

__all__ = ["main"]

_NAME = "kernels-triton-{}"  # with the version of Triton


def main() -> None:
    args = _parse_args(sys.argv[1:])
    faults = list(_check(args.folder, args.every) if args.check else _write(args.folder))
    if faults:
        sys.exit("\n".join(faults))


def _write(folder: Path) -> Iterator[str]:
    """Compile all kernels and write the record. Yield those that spill registers."""
    kernels = []
    for kernel in decoder_kernels():
        resources = {str(each): asdict(compile_variant(kernel.launch, each)) for each in kernel.capabilities}
        kernels.append(_facts(kernel) | {"resources": resources})
    results = {"kernels": kernels, "layers": list(launch_counts())}
    path = write_record(_NAME.format(triton.__version__), results, packages=("triton",), folder=folder)
    path.with_suffix(".md").write_text(kernel_tables(results, triton.__version__), encoding="utf-8")
    print(path)
    yield from _spills(path.name, results)


def _facts(kernel: DecoderKernel) -> dict[str, Any]:
    return {
        "kernel": kernel.variant.name,
        "precision": kernel.precision,
        "variant": kernel.description,
        "digest": kernel.variant.digest,
    }


def _check(folder: Path, every: int) -> Iterator[str]:
    """Yield the differences between the records, the current kernels, and every n-th compiled kernel."""
    kernels, layers = list(decoder_kernels()), list(launch_counts())
    paths = sorted(folder.glob(_NAME.format("*") + ".json"))
    if not paths:
        yield f"{folder} contains no record of kernels. Run make kernels."
    for path in paths:
        yield from _record_faults(path, kernels, layers)
    yield from _compiled_faults(folder / f"{_NAME.format(triton.__version__)}.json", kernels, every)


def _record_faults(path: Path, kernels: list[DecoderKernel], layers: list[dict[str, Any]]) -> Iterator[str]:
    """Yield what is wrong with a record, as far as this can be found without its version of Triton."""
    record = json.loads(path.read_text(encoding="utf-8"))
    results, version = record["results"], record["versions"].get("triton")
    if path.stem != _NAME.format(version):
        yield f"{path.name} was recorded with Triton {version}. Run make kernels."
    digests = [each["digest"] for each in results["kernels"]]
    if len(set(digests)) < len(digests):
        yield f"{path.name} contains kernels more than once. Run make kernels."
    stale = _stale(results, kernels)
    if results["layers"] != layers:
        stale.append("the launches of a layer")
    if stale:
        differences = ", ".join(stale)
        yield f"{path.name} is not the record of the current kernels ({differences}). Run make kernels."
    yield from _spills(path.name, results)
    table = path.with_suffix(".md")
    if not table.is_file() or table.read_text(encoding="utf-8") != kernel_tables(results, version):
        yield f"{table.name} is not the table of {path.name}. Run make kernels."


def _stale(results: dict[str, Any], kernels: list[DecoderKernel]) -> list[str]:
    """Return the names of kernels that are missing in the record, have changed, or no longer exist."""
    current = {
        (each.variant.digest, gpu, each.variant.name, each.precision, each.description)
        for each in kernels
        for gpu in each.capabilities
    }
    recorded = {
        (each["digest"], int(gpu), each["kernel"], each["precision"], each["variant"])
        for each in results["kernels"]
        for gpu in each["resources"]
    }
    return sorted({name for _, _, name, *_ in recorded ^ current})


def _spills(name: str, results: dict[str, Any]) -> Iterator[str]:
    for kernel in results["kernels"]:
        for capability, resources in kernel["resources"].items():
            if resources["stack_bytes"]:
                variant = f"{kernel['kernel']} ({kernel['precision']}, {kernel['variant']})"
                yield f"{name}: {variant} spills registers on sm_{capability}: {resources}"


def _compiled_faults(path: Path, kernels: list[DecoderKernel], every: int) -> Iterator[str]:
    """Compile every n-th kernel, and yield the differences from the record at ``path``, if it exists."""
    recorded = json.loads(path.read_text(encoding="utf-8"))["results"]["kernels"] if path.is_file() else []
    expected = {each["digest"]: each["resources"] for each in recorded}
    pairs = [(kernel, capability) for kernel in kernels for capability in kernel.capabilities]
    sample = pairs[date.today().toordinal() % every :: every]
    for kernel, capability in sample:
        actual = asdict(compile_variant(kernel.launch, capability))
        resources = expected.get(kernel.variant.digest, {}).get(str(capability))
        name = f"{kernel.variant.name} ({kernel.precision}, {kernel.description}) on sm_{capability}"
        if actual["stack_bytes"]:
            yield f"{name} spills registers: {actual}"
        if resources not in (None, actual):
            yield f"{name} was recorded with {resources}, but is now {actual}. Run make kernels."
    compared = "compared with the record" if expected else "of which there is no record"
    print(f"compiled {len(sample)} of {len(pairs)} kernels with Triton {triton.__version__}, {compared}")


def _parse_args(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu.aot",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--check", action="store_true", help="check the records instead of writing one")
    parser.add_argument("--every", type=int, default=20, help="compile every n-th kernel during a check")
    parser.add_argument("--folder", type=Path, default=RESULTS / "gpu", help="folder of the records")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
