"""The image store in a shared folder."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from llava_wire.errors import ImageStoreUnavailable
from llava_wire.image_stores import folder as module
from llava_wire.image_stores.folder import FolderImageStore
from llava_wire.worker_side import image_reader
from llava_wire.worker_side.image_reader import ImageReader

from tests.wire.harness import make_image

pytestmark = pytest.mark.anyio


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[FolderImageStore]:
    store = FolderImageStore(tmp_path / "lv")
    yield store
    await store.aclose()


async def test_expired_images_and_abandoned_files_are_removed(
    store: FolderImageStore, tmp_path: Path
) -> None:
    await store.put("live", b"1", ttl_s=60)
    await store.put("expired", b"2", ttl_s=-module._CLOCK_MARGIN_S - 1)
    await store.put("just expired", b"3", ttl_s=-1)
    for name, age_s in (("new.tmp", 0.0), ("old.tmp", module._MAX_WRITE_S + 1), ("other", 1e6)):
        (tmp_path / "lv" / name).touch()
        os.utime(tmp_path / "lv" / name, (time.time() - age_s,) * 2)
    await store.remove_expired()
    names = {path.name for path in (tmp_path / "lv").iterdir()}
    assert names == {"live.rgb", "just%20expired.rgb", "new.tmp", "other"}


async def test_an_image_that_may_be_removed_is_not_extended(store: FolderImageStore, tmp_path: Path) -> None:
    await store.put("a", b"1", ttl_s=-1)
    assert not await store.touch("a", ttl_s=60)
    await store.put("a", b"1", ttl_s=30)
    assert await store.touch("a", ttl_s=60)
    assert await store.touch("a", ttl_s=10)  # never shortens the TTL
    assert (tmp_path / "lv" / "a.rgb").stat().st_mtime > time.time() + 40
    assert not await store.touch("unknown", ttl_s=60)


@pytest.mark.parametrize("digest", ["../outside", "/etc/passwd", "..", ".", "a/b", "a\x00b", "%2e%2e"])
async def test_a_digest_never_leaves_the_folder(store: FolderImageStore, tmp_path: Path, digest: str) -> None:
    await store.put(digest, b"1", ttl_s=60)
    assert await store.get(digest) == b"1"
    assert len(list((tmp_path / "lv").iterdir())) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["lv"]
    await store.delete([digest, "unknown"])
    assert await store.get(digest) is None


async def test_other_users_cannot_read_images(store: FolderImageStore, tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        await store.put("a", b"1", ttl_s=60)
    finally:
        os.umask(before)
    for path in (tmp_path / "lv", tmp_path / "lv" / "a.rgb"):
        assert stat.S_IMODE(path.stat().st_mode) & 0o007 == 0


async def test_a_write_that_fails_leaves_no_file(store: FolderImageStore, tmp_path: Path) -> None:
    (tmp_path / "lv" / "a.rgb").mkdir(parents=True)  # the image cannot replace a folder
    with pytest.raises(ImageStoreUnavailable, match="The image store is unavailable: .*Is a directory"):
        await store.put("a", b"1", ttl_s=60)
    assert [path.name for path in (tmp_path / "lv").iterdir()] == ["a.rgb"]
    assert store.num_errors == {"Is a directory": 1}


async def test_a_file_system_that_does_not_respond_is_an_outage(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.rgb")  # opening it waits for a writer
    store = FolderImageStore(tmp_path, timeout_s=0.1)
    with pytest.raises(ImageStoreUnavailable, match=r"does not respond within 0\.1 s"):
        await store.get("a")
    os.close(os.open(tmp_path / "a.rgb", os.O_WRONLY))  # ends the thread
    await store.aclose()


async def test_a_worker_does_not_wait_for_each_image_while_the_store_does_not_respond(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_reader, "_PAUSE_S", 600.0)
    os.mkfifo(tmp_path / "a.rgb")
    store = FolderImageStore(tmp_path, timeout_s=0.1)
    await store.put("b", b"1" * 12, ttl_s=60)
    reader, images = ImageReader(store), [make_image(name)[0] for name in "ab"]
    images = [msgspec.structs.replace(image, digest=name) for image, name in zip(images, "ab", strict=True)]
    assert await reader.read(images[1:]) == {"b": b"1" * 12}
    assert await reader.read(images[:1]) == {}
    assert await reader.read(images) == {}
    assert store.num_errors == {"timeout": 1}
    os.close(os.open(tmp_path / "a.rgb", os.O_WRONLY))
    await reader.aclose()


async def test_the_capacity_does_not_shrink_as_images_are_stored(store: FolderImageStore) -> None:
    assert await store.capacity_bytes() > 0
    await store.put("a", b"1" * 1000, ttl_s=60)
    assert await store.capacity_bytes() > 1000
