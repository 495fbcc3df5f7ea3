"""The worker process: pulls jobs from the queue, runs a LLaVA model and streams tokens back.

Start it with ``python -m llava_worker``. No other package imports this one.
"""

import os

# Make torch allocate memory in 2 MiB pages, which speeds up reading weights by up to 25%. Torch reads this
# variable when it first allocates memory, so the variable must be set before torch is imported.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

# GNU OpenMP lets a thread spin 300,000 times (about 3 ms) before it sleeps. If another process uses one of
# the cores, the threads of each parallel region spin while they wait for the one that cannot run. It reads
# this variable when torch is imported. 10,000 iterations are enough for the time between two regions.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
