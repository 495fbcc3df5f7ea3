"""The model's language: chat templates, tokenizers and the detokenizer."""
