"""A load generator that measures the latency of OpenAI-compatible chat servers (``llava-serve bench``).

plan = Plan(num_requests=64, concurrency=8, images=Images.NEW)
run = asyncio.run(run_load(plan, "http://127.0.0.1:8000"))
print(summarize(run)["ttft_s"]["p50"])
"""

from __future__ import annotations

from llava_cli.bench.load_generator import Run, run_load
from llava_cli.bench.plan import Images, Plan
from llava_cli.bench.sample import Sample
from llava_cli.bench.summary import percentile, summarize

__all__ = ["Images", "Plan", "Run", "Sample", "percentile", "run_load", "summarize"]
