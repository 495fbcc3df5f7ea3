"""A stage of the GPU session whose measurements fail in different ways."""

from __future__ import annotations

import ctypes
import os
import subprocess
import time
from collections.abc import Iterator
from typing import Any

from bench.gpu.session.measurement import CheckFailed, Measurement, NotApplicable
from bench.gpu.session.setup import Setup

__all__ = ["measurements"]

_FOREVER_S = 1000


def measurements(_setup: Setup) -> list[Measurement]:
    return [
        Measurement("raises", _raise),
        Measurement("wrong", _fail),
        Measurement("unsupported", _skip),
        Measurement("crashes", _crash),
        Measurement("hangs", _hang, limit_s=1.0),
        Measurement("succeeds", _succeed),
        Measurement("never ends", _never_end, limit_s=_FOREVER_S),
        Measurement("too late", _succeed),
    ]


def _raise() -> Iterator[dict[str, Any]]:
    yield {"before": 1}
    raise RuntimeError("an unexpected error")


def _fail() -> Iterator[dict[str, Any]]:
    raise CheckFailed("the result is wrong")
    yield {}


def _skip() -> Iterator[dict[str, Any]]:
    raise NotApplicable("not on this machine")
    yield {}


def _crash() -> Iterator[dict[str, Any]]:
    """Start a process in a session of its own, and exit without stopping it."""
    child = subprocess.Popen(["sleep", str(_FOREVER_S)], start_new_session=True)
    yield {"orphan": child.pid}
    os.abort()


def _hang() -> Iterator[dict[str, Any]]:
    """Call a function of a library that never returns and does not release the interpreter's lock."""
    ctypes.PyDLL(None).sleep(_FOREVER_S)
    yield {}


def _succeed() -> Iterator[dict[str, Any]]:
    yield {"answer": 42}


def _never_end() -> Iterator[dict[str, Any]]:
    yield {"partial": "result"}
    time.sleep(_FOREVER_S)
