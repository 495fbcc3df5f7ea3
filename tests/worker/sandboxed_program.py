"""The program of a `SandboxedProcess` for tests. Each request is the name of an action."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

from llava_worker.sandboxed_process import serve


def spin() -> None:
    while True:
        pass


def work() -> None:
    end_s = time.process_time() + 0.1
    while time.process_time() < end_s:
        pass


def spin_in_c() -> None:
    pow(7, 7**10)


def sleep() -> None:
    time.sleep(3600)


def use_memory() -> int:
    return len(bytearray(200 << 20))


def crash() -> None:
    os.abort()


ACTIONS: dict[str, Callable[[], object]] = {
    "pid": os.getpid,
    "environment": lambda: sorted(os.environ),
    "work": work,
    "spin": spin,
    "spin in C": spin_in_c,
    "sleep": sleep,
    "use memory": use_memory,
    "crash": crash,
}


def open_handler(setup: Any) -> Callable[[Any], object]:
    return lambda action: setup if action == "setup" else ACTIONS[action]()


if __name__ == "__main__":
    serve(open_handler)
