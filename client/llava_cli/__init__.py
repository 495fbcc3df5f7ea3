"""The ``llava-serve`` command. ``main`` is the entry point, and ``app`` is the Typer application."""

from __future__ import annotations

from llava_cli.app import app, main

__all__ = ["app", "main"]
