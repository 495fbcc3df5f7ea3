"""The controller: serves the OpenAI-compatible HTTP API and submits jobs to the queue, without torch."""
