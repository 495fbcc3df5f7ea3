"""Engine startup: checkpoint loading, memory budget, warm-up and CUDA graph capture."""
