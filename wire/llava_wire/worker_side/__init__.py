"""The worker side of the queue: pull assignments and emit events."""
