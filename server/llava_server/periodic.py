"""Periodic background tasks."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

__all__ = ["run_periodically"]


async def run_periodically(interval_s: float, step: Callable[[], Awaitable[None]]) -> None:
    """Run ``step`` repeatedly until cancelled, waiting ``interval_s`` seconds after each run."""
    while True:
        await step()
        await asyncio.sleep(interval_s)
