"""A check that all workers use the same image store as this server."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from llava_wire.image_stores.location import image_store_digest
from llava_wire.messages.heartbeat import Heartbeat

__all__ = ["image_store_problems"]

_REMEDY = "Set LLAVA_IMAGE_STORE to the same store for all servers and workers."


def image_store_problems(
    heartbeats: Sequence[Heartbeat], image_store: str
) -> list[tuple[Literal["warning", "error"], str]]:
    """Return the level and the text of each difference between live workers and this server.

    ``image_store`` is the URL in the server's settings. No text contains a URL. Workers of older releases,
    which do not report their store, are omitted.
    """
    expected = image_store_digest(image_store)
    others = [beat.image_store for beat in heartbeats if beat.image_store not in (None, expected)]
    num_without, num_other = others.count(""), len(others) - others.count("")
    problems: list[tuple[Literal["warning", "error"], str]] = []
    if num_without:
        text = f"{num_without} of {len(heartbeats)} workers have no image store, but this server has one"
        problems.append(("error", f"{text}, so they cannot read images. {_REMEDY}"))
    if num_other and expected:
        text = (
            f"{num_other} of {len(heartbeats)} workers have an image store with another URL than this server"
        )
        problems.append(
            ("warning", f"{text}. Unless it is the same store, they cannot read images. {_REMEDY}")
        )
    elif num_other:
        text = f"{num_other} of {len(heartbeats)} workers have an image store, but this server has none"
        problems.append(("warning", f"{text} and stores images in the queue. {_REMEDY}"))
    return problems
