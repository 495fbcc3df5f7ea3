"""Reproducible benchmarks, not included in any package. Start with ``python -m bench --help``."""

import os

# Peak rates are measured with 2 MiB pages, which llava_worker also uses.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
