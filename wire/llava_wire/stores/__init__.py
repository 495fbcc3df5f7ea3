"""Data stored in Redis: API keys, rate limits, files and batches."""
