"""Scheduling and memory: sequences, batches, the scheduler, KV cache blocks and caches."""
