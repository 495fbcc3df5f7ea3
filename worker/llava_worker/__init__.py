"""The worker process: pulls jobs from the queue, runs a LLaVA model and streams tokens back.

It is started by ``python -m llava_worker``. No other package imports this one.
"""

import os

# torch then allocates pages of 2 MiB, and weights are read up to a quarter faster. It reads the variable at
# its first allocation, so it is set before torch is imported.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
