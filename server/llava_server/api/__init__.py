"""One module per group of routes; each has a ``router``."""
