"""The controller's side of the queue: submit jobs, read events."""
