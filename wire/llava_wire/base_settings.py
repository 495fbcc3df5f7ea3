"""Settings shared by the server and the worker, read from ``LLAVA_*`` variables and command-line flags.

``ServiceSettings`` is the base class for the settings of both programs. Secrets are never printed. They can
be read from files, such as those mounted by Docker or Kubernetes. For example, ``LLAVA_REDIS_URL_FILE`` is
the path of a file that contains the value of ``redis_url``.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, CliApp, SettingsConfigDict
from typing_extensions import Self

from llava_wire.image_stores.location import check_image_store
from llava_wire.redis.address import RedisURLError, parse_redis_url
from llava_wire.redis.shards import MAX_SHARDS, Shard, queue_shards

__all__ = ["ServiceSettings", "redis_url_error"]

_REDIS_URL = (
    "URL of Redis or Valkey: redis://, redis+sentinel://, redis+cluster:// or unix://; rediss for TLS."
)


class ServiceSettings(BaseSettings):
    """Base class for the settings of a process.

    Subclasses add fields and set ``program``, the prefix of error messages. A secret field ``<name>`` can
    also be set with ``<name>_file``, the path of a file that contains the secret.
    """

    program: ClassVar[str]
    model_config = SettingsConfigDict(
        env_prefix="LLAVA_",
        env_ignore_empty=True,  # docker-compose.yml passes every variable
        frozen=True,
        extra="ignore",
        hide_input_in_errors=True,
        cli_kebab_case=True,
        cli_hide_none_type=True,
        cli_avoid_json=True,
        cli_implicit_flags=True,
    )

    redis_url: SecretStr = Field(
        SecretStr("redis://127.0.0.1:6379/0"),
        description=_REDIS_URL,
    )
    redis_url_file: Path | None = Field(None, description="File that contains the Redis URL (a secret).")
    queue_urls: SecretStr = Field(
        SecretStr(""),
        description="URLs of the Redis servers of the queue's shards, separated by spaces, to distribute the "
        "queue over several servers. If empty, all shards are on LLAVA_REDIS_URL, which always stores files, "
        "responses, batches and API keys.",
    )
    queue_urls_file: Path | None = Field(None, description="File that contains the queue URLs (a secret).")
    queue_shards: int | None = Field(
        None,
        ge=1,
        le=MAX_SHARDS,
        description="Number of shards of the queue, which must be the same for all servers and workers. "
        "Defaults to the number of LLAVA_QUEUE_URLS, or 1.",
    )
    image_store: SecretStr = Field(
        SecretStr(""),
        description="Store of preprocessed images, which must be the same for all servers and workers: the "
        "URL of another Redis server, or file:///path/of/folder for a folder that they share. If empty, the "
        "queue stores them.",
    )
    image_store_file: Path | None = Field(
        None, description="File that contains the URL of the image store (a secret)."
    )
    lease_s: float = Field(
        5.0,
        gt=0,
        le=600,
        description="Time without a heartbeat after which a worker is declared lost, in seconds.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Minimum level of log messages."
    )
    otel: bool = Field(
        False,
        description="Export OpenTelemetry traces with OTLP over HTTP, as configured by the OTEL_* variables.",
    )

    @classmethod
    def load(cls, arguments: Sequence[str]) -> Self:
        """Load the settings from environment variables and command-line flags.

        If any setting is invalid, print one line per error to stderr and exit with status 2.
        """
        try:
            return CliApp.run(cls, cli_args=list(arguments))
        except ValidationError as error:
            lines = [f"{cls.program}: {cls._error_line(detail)}" for detail in error.errors()]
            sys.stderr.write("\n".join(lines) + "\n")
            raise SystemExit(2) from None  # a chained exception could print secret values

    @model_validator(mode="before")
    @classmethod
    def _read_secret_files(cls, values: dict[str, Any]) -> dict[str, Any]:
        read = {}
        for name, field in cls.model_fields.items():
            path = values.get(f"{name}_file")
            if not path or not _is_secret(field):
                continue
            if values.get(name):
                raise ValueError(
                    f"Both {_setting(name)} and {_setting(f'{name}_file')} are set. Set only one of them."
                )
            text = _read_text(name, Path(path))
            is_list = field.annotation is not SecretStr
            read[name] = [part for part in re.split(r"[,\s]+", text) if part] if is_list else text
        return {**values, **read}

    @field_validator("redis_url")
    @classmethod
    def _check_redis_url(cls, value: SecretStr) -> SecretStr:
        parse_redis_url(value.get_secret_value())
        return value

    @field_validator("queue_urls")
    @classmethod
    def _check_queue_urls(cls, value: SecretStr) -> SecretStr:
        for url in value.get_secret_value().split():
            parse_redis_url(url)
        return value

    @field_validator("image_store")
    @classmethod
    def _check_image_store(cls, value: SecretStr) -> SecretStr:
        check_image_store(value.get_secret_value())
        return value

    @model_validator(mode="after")
    def _check_shards(self) -> Self:
        num_urls = len(self.queue_urls.get_secret_value().split())
        if self.queue_shards is not None and self.queue_shards < num_urls:
            raise ValueError(
                f"{_setting('queue_shards')} is {self.queue_shards}, but {_setting('queue_urls')} contains "
                f"{num_urls} URLs. Each server needs at least one shard"
            )
        return self

    @model_validator(mode="after")
    def _check_image_store_is_separate(self) -> Self:
        if self.image_store.get_secret_value() in {shard.url for shard in self.shards}:
            raise ValueError(
                f"{_setting('image_store')} is the URL of the queue. Leave it empty to store images there"
            )
        return self

    @property
    def shards(self) -> tuple[Shard, ...]:
        """The shards of the queue."""
        urls = self.queue_urls.get_secret_value().split()
        num_shards = self.queue_shards or len(urls) or 1
        image_store = self.image_store.get_secret_value()
        return queue_shards(urls or [self.redis_url.get_secret_value()], num_shards, image_store)

    @classmethod
    def _error_line(cls, detail: Any) -> str:
        """Format one pydantic error. Omit the invalid value if the field is a secret."""
        name = "_".join(str(part) for part in detail["loc"])
        message = str(detail["msg"]).removeprefix("Value error, ").removesuffix(".")
        if not name:
            return f"{message}."
        field = cls.model_fields.get(name)
        got = f" (got {detail.get('input')!r})" if field is None or not _is_secret(field) else ""
        has_own_remedy = name in ("redis_url", "queue_urls", "image_store")
        description = f" {field.description}" if field and not has_own_remedy else ""
        return f"{_setting(name)}: {message}{got}.{description}"


def redis_url_error(url: str) -> str | None:
    """Return the error message for an invalid Redis URL, or None if the URL is valid."""
    try:
        parse_redis_url(url)
    except RedisURLError as error:
        return f"{_setting('redis_url')}: {error}."
    return None


def _setting(name: str) -> str:
    """Return the variable and the flag of a setting, as printed in error messages."""
    return f"LLAVA_{name.upper()} / --{name.replace('_', '-')}"


def _is_secret(field: FieldInfo) -> bool:
    return SecretStr in (field.annotation, *get_args(field.annotation))


def _read_text(name: str, path: Path) -> str:
    try:
        return path.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "the file is not UTF-8 text"
        raise ValueError(f"{_setting(f'{name}_file')}: cannot read {path}: {reason}.") from error
