"""Tensor parallelism: one process per rank."""
