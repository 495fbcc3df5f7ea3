"""Tensor parallelism, with one process per rank."""
