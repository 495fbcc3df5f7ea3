"""Kernels of a forward pass behind one interface: in torch, fused in Triton, and W4A16 in Triton."""
