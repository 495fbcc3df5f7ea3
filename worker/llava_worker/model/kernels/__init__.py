"""Kernels for the forward pass that share one interface: torch, fused Triton and W4A16 Triton kernels."""
