"""Reproducible benchmarks, not included in any published package.

To get started, run ``python -m bench --help``.
"""

import os

# Use 2 MiB pages, as llava_worker does, so that the measured peak rates also apply to the worker.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
