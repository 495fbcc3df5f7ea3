"""Measures how much accuracy quantization costs: ``python -m bench.quality``."""
