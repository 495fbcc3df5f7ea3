"""Operator commands: ``python -m llava_server.operator.cli top|doctor|dlq``. They connect to Redis."""
