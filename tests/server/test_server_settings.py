"""Server settings: sources, validation and error messages. Secrets are never printed."""

from __future__ import annotations

from pathlib import Path

import pytest
from llava_server.settings import load_settings
from pydantic import ValidationError

INVALID = {
    "--port 99999": ["LLAVA_PORT / --port", "less than or equal to 65535", "99999"],
    "--port x": ["--port", "valid integer", "'x'"],
    "--max-images -1": ["LLAVA_MAX_IMAGES", "greater than or equal to 0"],
    "--log-level loud": ["loud", "debug"],
    "--redis-url http://x": ["LLAVA_REDIS_URL", "redis://"],
    "--drain-timeout-s nan": ["LLAVA_DRAIN_TIMEOUT_S", "nan"],
    "--no-such-flag 1": ["--no-such-flag"],
    "--admin-port 65535 --processes 2": ["LLAVA_ADMIN_PORT", "65535", "2 controller"],
    "--port 9002 --admin-port 9000 --processes 3": [
        "LLAVA_PORT / --port is 9002",
        "admin ports 9000 to 9002",
    ],
    "--port 9000 --admin-port 9000": ["LLAVA_PORT / --port is 9000", "admin port 9000 ("],
    "--demo-socket /tmp/x --host 0.0.0.0": ["LLAVA_DEMO_SOCKET", "loopback address", "0.0.0.0"],
}


@pytest.mark.parametrize("flags", INVALID)
def test_an_invalid_value_exits_with_its_name_value_and_limit(
    flags: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_info:
        load_settings(flags.split())
    assert exit_info.value.code == 2
    message = capsys.readouterr().err
    assert all(words in message for words in INVALID[flags]), message


def test_flags_override_variables_and_variables_override_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAVA_PORT", "1234")
    monkeypatch.setenv("LLAVA_MAX_IMAGES", "3")
    settings = load_settings(["--port", "4321"])
    assert (settings.port, settings.max_images, settings.host) == (4321, 3, "127.0.0.1")


def test_the_api_and_the_admin_port_can_be_equal_on_different_addresses() -> None:
    settings = load_settings(["--port", "9000", "--admin-port", "9000", "--admin-host", "127.0.0.2"])
    assert settings.port == settings.admin_port


def test_settings_are_frozen() -> None:
    settings = load_settings([])
    with pytest.raises(ValidationError):
        settings.port = 1  # type: ignore[misc]


def test_keys_are_split_at_commas_and_not_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAVA_API_KEYS", "first-key-1, second-key-2,")
    settings = load_settings(["--redis-url", "redis://:password@host/0"])
    assert [key.get_secret_value() for key in settings.api_keys] == ["first-key-1", "second-key-2"]
    assert "first-key" not in repr(settings)
    assert "password" not in repr(settings)


def test_a_short_key_is_rejected_without_printing_it(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        load_settings(["--api-keys", "s3cret"])
    message = capsys.readouterr().err
    assert "at least 8 characters" in message
    assert "s3cret" not in message


def test_secrets_are_read_from_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "url").write_text("redis://:secret@host/1\n")
    (tmp_path / "keys").write_text("first-key-1\nsecond-key-2\n")
    monkeypatch.setenv("LLAVA_REDIS_URL_FILE", str(tmp_path / "url"))
    monkeypatch.setenv("LLAVA_API_KEYS_FILE", str(tmp_path / "keys"))
    settings = load_settings([])
    assert settings.redis_url.get_secret_value() == "redis://:secret@host/1"
    assert len(settings.api_keys) == 2


def test_a_secret_given_twice_or_unreadable_is_rejected(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        load_settings(["--redis-url-file", str(tmp_path / "nowhere")])
    assert "cannot read" in capsys.readouterr().err
    (tmp_path / "url").write_text("redis://host")
    with pytest.raises(SystemExit):
        load_settings(["--redis-url-file", str(tmp_path / "url"), "--redis-url", "redis://other"])
    assert "Set only one" in capsys.readouterr().err


def test_the_queue_has_one_shard_per_url_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [shard.url for shard in load_settings([]).shards] == ["redis://127.0.0.1:6379/0"]
    monkeypatch.setenv("LLAVA_QUEUE_URLS", "redis://:secret@a redis+sentinel://b,c/queue")
    settings = load_settings([])
    assert [shard.url for shard in settings.shards] == ["redis://:secret@a", "redis+sentinel://b,c/queue"]
    assert "secret" not in repr(settings)
    assert len(load_settings(["--queue-shards", "5"]).shards) == 5


@pytest.mark.parametrize(
    "flags",
    [
        ["--queue-urls", "redis://:s3cret@a http://b"],
        ["--queue-urls", "redis://:s3cret@a redis://b", "--queue-shards", "1"],
    ],
)
def test_invalid_shards_are_rejected_without_printing_the_urls(
    flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        load_settings(flags)
    message = capsys.readouterr().err
    assert "LLAVA_QUEUE_URLS / --queue-urls" in message
    assert "s3cret" not in message


def test_all_shards_have_the_same_image_store(tmp_path: Path) -> None:
    assert [shard.image_store for shard in load_settings([]).shards] == [""]
    for url in ("redis+sentinel://:secret@a,b/images", "rediss://a", f"file://{tmp_path}"):
        settings = load_settings(["--image-store", url, "--queue-shards", "2"])
        assert [shard.image_store for shard in settings.shards] == [url, url]
        assert "secret" not in repr(settings)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("s3://:s3cret@bucket", "use one of redis://"),
        ("/images", "for a shared folder, use file:///path/of/folder"),
        ("file://images/s3cret", "is not absolute"),
        ("file:///nowhere/at/all", "create it, and mount it at the same path"),
        ("redis://:s3cret@a/x", "the database after the host is not a number"),
        ("redis://127.0.0.1:6379/0", "is the URL of the queue"),
    ],
)
def test_an_invalid_image_store_is_rejected_with_the_reason(
    url: str, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        load_settings(["--image-store", url])
    message = capsys.readouterr().err
    assert "LLAVA_IMAGE_STORE / --image-store" in message
    assert reason in message
    assert ":s3cret@" not in message
