"""Quantization formats for weights and activations."""
