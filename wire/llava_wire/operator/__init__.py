"""The operator's view of the queue and commands to workers."""
