"""The controller: OpenAI-style HTTP on one side, the job queue on the other. It has no model and no torch."""
