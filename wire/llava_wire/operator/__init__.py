"""For operators: the state of the queue, and commands to workers."""
