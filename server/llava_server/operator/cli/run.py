"""Runs the operator's commands so that no text and no closed pipe causes a traceback."""

from __future__ import annotations

import io
import os
import sys

import typer

__all__ = ["run"]


def run(app: typer.Typer, *, prog_name: str) -> None:
    """Run a command and exit.

    Characters that the encoding of stdout cannot represent are printed as escapes (``\\xe9``). If stdout
    is a closed pipe, exit with status 1.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        try:
            app(prog_name=prog_name)
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the flush at exit would fail
        raise SystemExit(1) from None
