"""Model configuration, read from ``config.json``."""
