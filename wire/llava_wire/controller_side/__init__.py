"""The controller side of the queue: submit jobs and read events."""
