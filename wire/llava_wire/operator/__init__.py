"""Operator access: the state of the queue, and commands for workers."""
