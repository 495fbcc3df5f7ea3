"""Reproducible benchmarks, not part of any package. To get started, run ``python -m bench --help``."""

import os

# Peak rates are measured with 2 MiB pages because llava_worker uses them too.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
