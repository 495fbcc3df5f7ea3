"""Benchmarks of servers under load."""
