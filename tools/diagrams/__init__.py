"""The diagrams of the documentation: ``python -m diagrams`` in ``tools`` writes them to ``docs/images``."""
