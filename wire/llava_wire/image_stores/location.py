"""The setting that selects the image store.

(empty)                  the Redis server of the queue
redis://host:port/0      another Redis server; all Redis URLs are supported (see ``redis/address.py``)
file:///path/of/folder   a folder that all servers and workers share
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from urllib.parse import unquote

from llava_wire.image_stores.folder import FolderImageStore
from llava_wire.image_stores.interface import ImageStore
from llava_wire.image_stores.redis_server import RedisImageStore
from llava_wire.redis.address import RedisURLError, parse_redis_url
from llava_wire.redis.keys import PREFIX

__all__ = ["check_image_store", "image_store_digest", "open_image_store"]

_FILE = "file://"


def check_image_store(url: str) -> None:
    """Raise ValueError if the URL is invalid or the folder does not exist. The message contains no secret."""
    if not url:
        return
    if not url.startswith(_FILE):
        try:
            parse_redis_url(url)
        except RedisURLError as error:
            raise ValueError(f"{error}; for a shared folder, use file:///path/of/folder") from None
        return
    folder = _folder(url)
    if not folder.is_absolute():
        raise ValueError(f"the path {str(folder)!r} is not absolute; expected file:///path/of/folder")
    if not folder.is_dir():
        raise ValueError(
            f"the folder {folder} does not exist; create it, and mount it at the same path for all servers "
            "and workers"
        )


def image_store_digest(url: str) -> str:
    """Return a digest of the location of a store without credentials, or "" if the queue stores the images.

    The same store can have different digests if it has several names. Raises RedisURLError.
    """
    if not url:
        return ""
    location = str(_folder(url)) if url.startswith(_FILE) else parse_redis_url(url).location
    return hashlib.sha256(location.encode()).hexdigest()[:16]


def open_image_store(url: str, prefix: str = PREFIX) -> ImageStore | None:
    """Open the store of a queue shard without connecting. Return None if the queue stores the images.

    Each shard has images of its own, because it drops those that its own jobs no longer use. ``prefix`` is
    the prefix of the keys of the shard. Raises RedisURLError.
    """
    if not url:
        return None
    if url.startswith(_FILE):
        return FolderImageStore(_folder(url) / prefix.strip("{}:"))
    return RedisImageStore(url, prefix=prefix)


def _folder(url: str) -> Path:
    return Path(unquote(url.removeprefix(_FILE)))
