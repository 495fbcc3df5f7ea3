"""Tasks that run while a test measures."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterable
from contextlib import asynccontextmanager

__all__ = ["running"]


@asynccontextmanager
async def running(coroutines: Iterable[Coroutine[object, object, None]]) -> AsyncIterator[None]:
    """Run the coroutines during the ``with`` block, then cancel them. Raises the first of their errors."""
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
    errors = [each for each in results if isinstance(each, Exception)]
    if errors:
        raise errors[0]
