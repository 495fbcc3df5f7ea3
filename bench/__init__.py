"""Reproducible benchmarks: of this repository only, shipped in no package. ``python -m bench --help``."""

import os

# Ceilings are measured in pages of 2 MiB, too: see llava_worker.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
