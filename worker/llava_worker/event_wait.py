"""To wait for an event of asyncio, with a limit."""

from __future__ import annotations

import asyncio

__all__ = ["wait_until_set"]


async def wait_until_set(event: asyncio.Event, timeout_s: float) -> None:
    """Until it is set, at most so long. ``wait_for`` may lose a cancellation before Python 3.12."""
    waiter = asyncio.create_task(event.wait())
    try:
        await asyncio.wait([waiter], timeout=timeout_s)
    finally:
        waiter.cancel()
