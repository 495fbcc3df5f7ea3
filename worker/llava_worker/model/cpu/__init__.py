"""Kernels in C++ for CPUs, how they are compiled, and how they are called. README.md explains them."""
