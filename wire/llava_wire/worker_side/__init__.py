"""The worker's side of the queue: pull assignments, emit events."""
