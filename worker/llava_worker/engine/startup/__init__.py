"""Building an engine: checkpoint, memory budget, warm-up and CUDA graph capture."""
