"""Update the pinned packages of all Python clients: python -m tests.interop.lock [CLIENT ...]

Writes ``requirements.txt`` from ``requirements.in``. ``excluded.txt`` in the client's folder lists packages
that are not installed, such as torch, whose CUDA libraries are several gigabytes.
"""

from __future__ import annotations

import subprocess
import sys

from tests.interop.catalog import CLIENTS, Client
from tests.interop.environments import ROOT, UV

MINIMUM_PYTHON = "3.11"  # of several clients


def lock(client: Client) -> None:
    """Resolve the client's packages for all platforms and all supported versions of Python."""
    excluded = client.folder / "excluded.txt"
    subprocess.run(
        [
            *(str(UV), "pip", "compile", "--quiet", "--universal", "--python-version", MINIMUM_PYTHON),
            *("--no-annotate", "--no-header", "--upgrade"),
            *(("--overrides", str(excluded)) if excluded.exists() else ()),
            *("--output-file", str(client.folder / "requirements.txt")),
            str(client.folder / "requirements.in"),
        ],
        cwd=ROOT,
        check=True,
    )


if __name__ == "__main__":
    for each in CLIENTS:
        if not each.is_node and (len(sys.argv) == 1 or each.name in sys.argv[1:]):
            lock(each)
