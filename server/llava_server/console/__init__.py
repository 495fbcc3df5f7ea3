"""What an operator types: ``python -m llava_server.console top|doctor|dlq``. It asks the queue, no server."""
