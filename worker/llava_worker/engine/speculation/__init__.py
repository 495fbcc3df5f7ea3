"""Speculative decoding with an n-gram drafter."""
