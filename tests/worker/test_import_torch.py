"""What a new process imports with torch, and its garbage collector."""

from __future__ import annotations

import subprocess
import sys

LOAD = """
import gc, inspect, sys
from llava_worker.__main__ import main
import llava_worker.worker_process as process

def serve(settings, host, create_output):
    import torch
    print(gc.isenabled(), gc.get_freeze_count() > 100_000, "torch._prims" in sys.modules)
    with torch.device("meta"):
        import torch._meta_registrations
        print(inspect.getmodule(inspect.getmodule).__name__)
        print(torch.linalg.inv(torch.zeros(3, 3)).shape == (3, 3), "torch._prims" in sys.modules)
    raise SystemExit(0)

process._serve = serve
sys.argv = ["worker", "--model", "tiny", "--device", "cpu", "--kv-cache-mb", "8"]
main()
"""


def test_a_worker_imports_no_operators_for_the_compiler_and_collects_garbage() -> None:
    done = subprocess.run([sys.executable, "-c", LOAD], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["True", "True", "False", "inspect", "True", "True"], done.stderr
