"""The operator's port: health, metrics and commands to workers."""
