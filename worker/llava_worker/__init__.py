"""The worker process: pulls jobs from the queue, runs a LLaVA model and streams tokens back.

Start it with ``python -m llava_worker``. No other package imports this one.
"""

import os

# Make torch allocate memory in 2 MiB pages, which speeds up reading weights by up to 25%. Torch reads this
# variable when it first allocates memory, so the variable must be set before torch is imported.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
