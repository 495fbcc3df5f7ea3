"""Scheduling and memory: sequences, batches, the scheduler, KV blocks and caches."""
