"""Training data, tokenizer, model and training loop of the tiny LLaVA. Used by tools/*_tiny.py."""
