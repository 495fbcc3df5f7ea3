"""Reproducible benchmarks, not included in any published package.

To get started, run ``python -m bench --help``.
"""

import importlib.util
import os
import sys

if importlib.util.find_spec("psutil") is None:
    sys.exit("The benchmarks require the dev extra. Run make bench, or pip install -e '.[dev]'.")

# Use 2 MiB pages, as llava_worker does, so that the measured peak rates also apply to the worker.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
