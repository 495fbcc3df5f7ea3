"""The ``llava-serve`` command. ``main`` is its entry point; ``app`` is the tree of subcommands."""

from __future__ import annotations

from llava_cli.app import app, main

__all__ = ["app", "main"]
