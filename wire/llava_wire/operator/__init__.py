"""Access for operators: the state of the queue, and commands for workers."""
