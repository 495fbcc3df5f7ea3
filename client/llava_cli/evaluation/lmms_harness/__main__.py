"""Run the plan in the file that is the only argument. ``plan`` documents its format."""

from __future__ import annotations

import sys

from .plan import read_plan
from .run import run

if __name__ == "__main__":
    run(read_plan(sys.argv[1]))
