"""CUDA graphs of decode steps and of the vision tower."""
