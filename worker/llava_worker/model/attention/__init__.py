"""Attention backends and the KV cache."""
