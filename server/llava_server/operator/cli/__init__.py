"""Operator commands, which connect to Redis: ``python -m llava_server.operator.cli top|doctor|dlq``."""
