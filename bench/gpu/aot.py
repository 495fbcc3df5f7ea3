"""``python -m bench.gpu.aot``: compile all kernels of a decoder ahead of time, without a GPU.

    python -m bench.gpu.aot             compile all kernels and write the record (5 minutes)
    python -m bench.gpu.aot --check     check the records, and compile every 20th kernel again

For each variant of a kernel and each compute capability, the record contains the registers per thread, the
stack per thread (above 0 if registers are spilled) and the shared memory per program. For each launch of a
layer with 1 and 128 rows, it contains the number of programs on a GPU with 132 multiprocessors.

There is a record for each tested version of Triton (``make kernels``). The check fails if a record is not
that of the current kernels. It recompiles other kernels each day.
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
        yield from (
            f"{kernel.variant.name} ({kernel.description}) spills registers on sm_{capability}: {each}"
            for capability, each in resources.items()
            if each["stack_bytes"]
        )
    results = {"kernels": kernels, "layers": list(launch_counts())}
    path = write_record(_NAME.format(triton.__version__), results, packages=("triton",), folder=folder)
    path.with_suffix(".md").write_text(kernel_tables(results, triton.__version__), encoding="utf-8")
    print(path)


def _facts(kernel: DecoderKernel) -> dict[str, str]:
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
    records = {path: json.loads(path.read_text(encoding="utf-8"))["results"] for path in paths}
    for path, record in records.items():
        stale = _stale(record, kernels)
        if record["layers"] != layers:
            stale.append("the launches of a layer")
        if stale:
            differences = ", ".join(stale)
            yield f"{path.name} is not the record of the current kernels ({differences}). Run make kernels."
    record = records.get(folder / f"{_NAME.format(triton.__version__)}.json", {"kernels": []})
    expected = {each["digest"]: each["resources"] for each in record["kernels"]}
    pairs = [(kernel, capability) for kernel in kernels for capability in kernel.capabilities]
    sample = pairs[date.today().toordinal() % every :: every]
    for kernel, capability in sample:
        actual = asdict(compile_variant(kernel.launch, capability))
        recorded = expected.get(kernel.variant.digest, {}).get(str(capability))
        name = f"{kernel.variant.name} ({kernel.precision}, {kernel.description}) on sm_{capability}"
        if actual["stack_bytes"]:
            yield f"{name} spills registers: {actual}"
        if recorded not in (None, actual):
            yield f"{name} was recorded with {recorded}, but is now {actual}. Run make kernels."
    compared = "compared with the record" if expected else "of which there is no record"
    print(f"compiled {len(sample)} of {len(pairs)} kernels with Triton {triton.__version__}, {compared}")


def _stale(record: dict[str, Any], kernels: list[DecoderKernel]) -> list[str]:
    """Return the names of kernels that are missing in the record, and of those that no longer exist."""
    recorded = {
        (each["digest"], int(gpu)): each["kernel"] for each in record["kernels"] for gpu in each["resources"]
    }
    current = {(each.variant.digest, gpu): each.variant.name for each in kernels for gpu in each.capabilities}
    return sorted({(recorded | current)[key] for key in recorded.keys() ^ current.keys()})


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
