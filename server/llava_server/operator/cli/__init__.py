"""Commands: ``python -m llava_server.operator.cli top|doctor|dlq``. They read the queue, not a server."""
