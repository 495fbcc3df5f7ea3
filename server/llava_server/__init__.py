"""The controller, which serves the OpenAI-compatible HTTP API and submits jobs to the queue.

It does not depend on torch.
"""
