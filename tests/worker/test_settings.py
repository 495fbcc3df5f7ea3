"""Settings: flags override variables, variables override defaults, and invalid values are reported."""

from __future__ import annotations

from pathlib import Path

import pytest
from llava_worker.settings import load_settings


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("REDIS_URL", "REDIS_URL_FILE", "MODEL", "PRECISION", "LOG_LEVEL", "MAX_NUM_SEQUENCES"):
        monkeypatch.delenv(f"LLAVA_{name}", raising=False)


def test_default_is_the_tiny_model_on_the_local_queue() -> None:
    settings = load_settings([])
    assert settings.model == "tiny"
    assert settings.redis_url.get_secret_value() == "redis://127.0.0.1:6379/0"


def test_flag_overrides_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAVA_MODEL", "tiny")
    monkeypatch.setenv("LLAVA_PRECISION", "bf16")
    settings = load_settings(["--model", "echo", "--max-num-sequences", "3"])
    assert (settings.model, settings.precision, settings.max_num_sequences) == ("echo", "bf16", 3)


def test_redis_url_can_be_read_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "url").write_text("redis://:secret@queue:6379/0\n")
    monkeypatch.setenv("LLAVA_REDIS_URL_FILE", str(tmp_path / "url"))
    assert load_settings([]).redis_url.get_secret_value() == "redis://:secret@queue:6379/0"


def test_redis_password_is_never_printed() -> None:
    assert "secret" not in repr(load_settings(["--redis-url", "redis://:secret@queue:6379/0"]))


def test_invalid_values_are_reported_with_the_setting_and_the_allowed_values(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for arguments, expected_words in (
        (["--precision", "int3"], ["LLAVA_PRECISION", "int3", "bf16"]),
        (["--kv-cache-dtype", "fp8"], ["LLAVA_KV_CACHE_DTYPE", "fp8", "int8"]),
        (["--vision-cache-mb", "-1"], ["LLAVA_VISION_CACHE_MB", "-1"]),
        (["--speculation", "on"], ["LLAVA_SPECULATION", "on", "'auto' or 'off'"]),
        (["--max-num-sequences", "0"], ["--max-num-sequences", "greater than or equal to 1", "0"]),
        (["--hang-timeout-s", "0.05"], ["--hang-timeout-s", "greater than or equal to 0.1", "0.05"]),
        (["--max-batch-tokens", "0"], ["--max-batch-tokens", "greater than or equal to 1", "0"]),
        (["--conversation", "unknown"], ["LLAVA_CONVERSATION", "unknown", "vicuna_v1"]),
        (
            ["--redis-url", "http://:secret@x"],
            ["--redis-url: the scheme is missing or not supported", "redis://"],
        ),
        (
            ["--redis-url-file", "/nowhere"],
            ["--redis-url-file: cannot read /nowhere: No such file or directory.\n"],
        ),
        (["--redis-url-file", "/x", "--redis-url", "redis://x"], ["Set only one"]),
    ):
        with pytest.raises(SystemExit) as raised:
            load_settings(arguments)
        assert raised.value.code == 2
        report = capsys.readouterr().err
        assert all(word in report for word in expected_words), report
        assert "secret" not in report


def test_settings_are_immutable() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_settings([]).model = "echo"  # type: ignore[misc]
