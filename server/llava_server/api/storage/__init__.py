"""Storage of responses and chat completions, shared by the APIs that offer it."""
