"""A wrong setting stops the process with its name, its value and what is allowed; secrets are never shown."""

from __future__ import annotations

from pathlib import Path

import pytest
from llava_server.settings import load_settings
from pydantic import ValidationError

WRONG = {
    "--port 99999": ["LLAVA_PORT / --port", "less than or equal to 65535", "99999"],
    "--port x": ["--port", "valid integer", "'x'"],
    "--max-images -1": ["LLAVA_MAX_IMAGES", "greater than or equal to 0"],
    "--log-level loud": ["loud", "debug"],
    "--redis-url http://x": ["LLAVA_REDIS_URL", "redis://"],
    "--drain-timeout-s nan": ["LLAVA_DRAIN_TIMEOUT_S", "nan"],
    "--no-such-flag 1": ["--no-such-flag"],
}


@pytest.mark.parametrize("flags", WRONG)
def test_wrong_flag_stops_with_name_value_and_limit(flags: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        load_settings(flags.split())
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert all(words in said for words in WRONG[flags]), said


def test_flags_go_before_variables_and_variables_before_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAVA_PORT", "1234")
    monkeypatch.setenv("LLAVA_MAX_IMAGES", "3")
    settings = load_settings(["--port", "4321"])
    assert (settings.port, settings.max_images, settings.host) == (4321, 3, "127.0.0.1")


def test_settings_cannot_be_changed() -> None:
    settings = load_settings([])
    with pytest.raises(ValidationError):
        settings.port = 1  # type: ignore[misc]


def test_keys_are_split_at_commas_and_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAVA_API_KEYS", "first-key-1, second-key-2,")
    settings = load_settings(["--redis-url", "redis://:password@host/0"])
    assert [key.get_secret_value() for key in settings.api_keys] == ["first-key-1", "second-key-2"]
    assert "first-key" not in repr(settings)
    assert "password" not in repr(settings)


def test_short_key_is_refused_without_showing_it(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        load_settings(["--api-keys", "s3cret"])
    said = capsys.readouterr().err
    assert "at least 8 characters" in said
    assert "s3cret" not in said


def test_secrets_may_come_from_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "url").write_text("redis://:secret@host/1\n")
    (tmp_path / "keys").write_text("first-key-1\nsecond-key-2\n")
    monkeypatch.setenv("LLAVA_REDIS_URL_FILE", str(tmp_path / "url"))
    monkeypatch.setenv("LLAVA_API_KEYS_FILE", str(tmp_path / "keys"))
    settings = load_settings([])
    assert settings.redis_url.get_secret_value() == "redis://:secret@host/1"
    assert len(settings.api_keys) == 2


def test_secret_given_twice_or_unreadable_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        load_settings(["--redis-url-file", str(tmp_path / "nowhere")])
    assert "cannot read" in capsys.readouterr().err
    (tmp_path / "url").write_text("redis://host")
    with pytest.raises(SystemExit):
        load_settings(["--redis-url-file", str(tmp_path / "url"), "--redis-url", "redis://other"])
    assert "give one" in capsys.readouterr().err
