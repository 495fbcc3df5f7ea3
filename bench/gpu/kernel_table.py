"""The record of compiled kernels as tables in Markdown."""

from __future__ import annotations

import math
from typing import Any

__all__ = ["kernel_tables"]


def kernel_tables(results: dict[str, Any], triton_version: str) -> str:
    return "\n".join(
        [
            f"Compiled with Triton {triton_version}. Registers per thread / stack per thread (bytes) / "
            "shared memory per program (KiB):",
            "",
            *_resources(results["kernels"]),
            "",
            "Launches of a layer, and the number of programs of each Triton kernel on 132 multiprocessors:",
            "",
            *_launches(results["layers"]),
            "",
        ]
    )


def _resources(kernels: list[dict[str, Any]]) -> list[str]:
    capabilities = sorted({int(each) for kernel in kernels for each in kernel["resources"]})
    header = ["kernel", "precision", "variant", "warps", *(f"sm_{each}" for each in capabilities)]
    rows = []
    for kernel in kernels:
        resources = kernel["resources"]
        [num_warps] = {each["num_warps"] for each in resources.values()}
        cells = [
            f"{each['registers']} / {each['stack_bytes']} / {each['shared_bytes'] / 1024:.1f}"
            if each
            else "-"
            for each in (resources.get(str(capability)) for capability in capabilities)
        ]
        rows.append([kernel["kernel"], kernel["precision"], kernel["variant"], num_warps, *cells])
    return _table(header, rows)


def _launches(layers: list[dict[str, Any]]) -> list[str]:
    rows = []
    for layer in layers:
        programs = [
            f"{each['name']} {math.prod(each['grid'])}" if each["grid"] else each["name"]
            for each in layer["launches"]
        ]
        step = "mixed" if layer["is_mixed"] else "decode"
        columns = [layer["size"], layer["precision"], layer["kv_cache"], step, layer["rows"]]
        rows.append([*columns, len(programs), ", ".join(programs)])
    return _table(["model", "precision", "KV cache", "step", "rows", "launches", "programs"], rows)


def _table(header: list[str], rows: list[list[Any]]) -> list[str]:
    return ["| " + " | ".join(map(str, row)) + " |" for row in (header, ["---"] * len(header), *rows)]
