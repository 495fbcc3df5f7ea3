"""The legacy Completions API: ``/v1/completions``."""
