"""A benchmark of controllers: their CPU time per token and the latency that they add."""
