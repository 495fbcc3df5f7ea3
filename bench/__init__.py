"""Reproducible benchmarks: of this repository only, shipped in no package. ``python -m bench --help``."""
