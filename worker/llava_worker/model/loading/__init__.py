"""Checkpoint loading: files, weight names and LoRA adapters."""
