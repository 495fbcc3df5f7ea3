"""Quantization formats of weights and activations."""
