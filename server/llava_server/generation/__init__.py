"""Generation: submit jobs, follow their events and write them as server-sent events."""
