"""Steps that are taken again and again while the process lives."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

__all__ = ["every"]


async def every(seconds: float, step: Callable[[], Awaitable[None]]) -> None:
    """Runs ``step`` for ever, with ``seconds`` between the end of one and the start of the next."""
    while True:
        await step()
        await asyncio.sleep(seconds)
