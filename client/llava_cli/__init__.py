"""The ``llava-serve`` command. ``main`` is the entry point, and ``create_app`` returns the application."""

from __future__ import annotations

from llava_cli.app import create_app, main

__all__ = ["create_app", "main"]
