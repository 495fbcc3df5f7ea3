"""Fused kernels in torch and Triton behind one interface."""
