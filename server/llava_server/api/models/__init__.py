"""The Models API: ``/v1/models``."""
