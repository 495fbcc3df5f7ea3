"""Runs benchmarks with lmms-eval against a server (``llava-serve eval``)."""
