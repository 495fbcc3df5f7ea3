"""Job submission, and the output events as responses or server-sent events."""
