"""Kernels for the forward pass, with a common interface: torch, fused Triton and W4A16 Triton kernels."""
