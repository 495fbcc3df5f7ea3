"""Kernels of a forward pass behind a common interface: torch, fused Triton and W4A16 Triton kernels."""
