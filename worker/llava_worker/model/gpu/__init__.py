"""CUDA graphs for decode steps and for the vision tower."""
