"""Settings: flags over variables over defaults, and a sentence for each value that cannot be."""

from __future__ import annotations

from pathlib import Path

import pytest
from llava_worker.settings import load_settings


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("REDIS_URL", "REDIS_URL_FILE", "MODEL", "PRECISION", "LOG_LEVEL", "MAX_NUM_SEQUENCES"):
        monkeypatch.delenv(f"LLAVA_{name}", raising=False)


def test_without_any_the_tiny_model_is_served_from_the_local_queue() -> None:
    settings = load_settings([])
    assert settings.model == "tiny"
    assert settings.redis_url.get_secret_value() == "redis://127.0.0.1:6379/0"


def test_a_flag_wins_over_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAVA_MODEL", "tiny")
    monkeypatch.setenv("LLAVA_PRECISION", "bf16")
    settings = load_settings(["--model", "echo", "--max-num-sequences", "3"])
    assert (settings.model, settings.precision, settings.max_num_sequences) == ("echo", "bf16", 3)


def test_the_queues_url_may_stand_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "url").write_text("redis://:secret@queue:6379/0\n")
    monkeypatch.setenv("LLAVA_REDIS_URL_FILE", str(tmp_path / "url"))
    assert load_settings([]).redis_url.get_secret_value() == "redis://:secret@queue:6379/0"


def test_the_queues_password_is_never_printed() -> None:
    assert "secret" not in repr(load_settings(["--redis-url", "redis://:secret@queue:6379/0"]))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--precision", "int3"], ["LLAVA_PRECISION", "int3", "bf16"]),
        (["--kv-cache-dtype", "fp8"], ["LLAVA_KV_CACHE_DTYPE", "fp8", "int8"]),
        (["--vision-cache-mb", "-1"], ["LLAVA_VISION_CACHE_MB", "-1"]),
        (["--speculation", "on"], ["LLAVA_SPECULATION", "on", "'auto' or 'off'"]),
        (["--max-num-sequences", "0"], ["--max-num-sequences", "greater than or equal to 1", "0"]),
        (["--conversation", "nobody"], ["LLAVA_CONVERSATION", "nobody", "vicuna_v1"]),
        (["--redis-url", "http://:secret@x"], ["--redis-url", "redis://"]),
        (["--redis-url-file", "/nowhere"], ["redis_url_file", "cannot read /nowhere"]),
        (["--redis-url-file", "/x", "--redis-url", "redis://x"], ["give one"]),
    ],
)
def test_a_wrong_value_ends_the_process_with_its_name_and_what_is_allowed(
    arguments: list[str], said: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ending:
        load_settings(arguments)
    assert ending.value.code == 2
    complaint = capsys.readouterr().err
    assert all(word in complaint for word in said), complaint
    assert "secret" not in complaint


def test_settings_do_not_change_after_the_start() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_settings([]).model = "echo"  # type: ignore[misc]
