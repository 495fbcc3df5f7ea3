"""The admin port: health checks, metrics and worker commands."""
