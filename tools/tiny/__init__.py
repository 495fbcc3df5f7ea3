"""The parts of the tiny LLaVA: pictures, questions, tokenizer, model, training. For tools/*_tiny.py."""
