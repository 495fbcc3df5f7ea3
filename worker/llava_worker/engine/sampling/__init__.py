"""Sampling: logits processors, top-k/top-p, the sampler and log-probabilities."""
