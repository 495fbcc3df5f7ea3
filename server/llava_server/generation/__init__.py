"""Generation: job submission, event distribution and streaming responses."""
