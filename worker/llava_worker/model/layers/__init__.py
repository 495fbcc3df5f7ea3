"""Layers: linear, embedding, rotary position embedding, activation."""
