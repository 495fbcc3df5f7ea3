"""Text processing: chat templates, prompts, tokenizers and the detokenizer."""
