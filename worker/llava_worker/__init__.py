"""The house of the engine: one process that pulls jobs, runs a LLaVA and streams tokens back.

Started by ``python -m llava_worker``; nothing else imports this package.
"""

import os

# torch asks for pages of 2 MiB then, so that weights are read up to a quarter faster. It looks once, when it
# first takes memory, so this stands before anything that imports it.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
