"""The tokenizer API: ``/tokenize`` and ``/detokenize``."""
