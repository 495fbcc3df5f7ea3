"""Wait until the output of a response or a chat completion has been stored."""

from __future__ import annotations

import redis
from llava_wire.redis.keys import PREFIX

from tests.server.conftest import Stack
from tests.waiting import wait_until

__all__ = ["wait_until_saved"]


def wait_until_saved(stack: Stack, response_id: str) -> None:
    """Return once the response has its output. The key of the output exists while it is being written."""
    name = f"{PREFIX}response:{response_id}"
    url = stack.server.services.settings.redis_url.get_secret_value()
    with redis.Redis.from_url(url) as queue:
        wait_until(lambda: int(queue.hget(name, "output_size") or -1) >= 0)
