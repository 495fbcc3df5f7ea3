"""Training data, tokenizer, model and training loop for the tiny LLaVA. Used by tools/*_tiny.py."""
