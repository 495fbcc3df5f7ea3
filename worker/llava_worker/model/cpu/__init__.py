"""Kernels for CPUs in C++: the few lines that decide how fast a step is. README.md explains them."""
