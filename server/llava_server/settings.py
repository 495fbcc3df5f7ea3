"""The settings of the server process: defaults, ``LLAVA_*`` variables, then flags; validated at startup.

``python -m llava_server --help`` lists every flag.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

from llava_wire.settings import ServiceSettings
from pydantic import Field, SecretStr, field_validator
from pydantic_settings import NoDecode, SettingsConfigDict

from llava_server.images.host_rules import HOST_RULE
from llava_server.log_format import LogFormat

__all__ = ["Settings", "load_settings"]

_MIN_KEY_LENGTH = 8


class Settings(ServiceSettings):
    """What a controller may be told from outside."""

    program: ClassVar[str] = "llava-server"
    model_config = SettingsConfigDict(cli_prog_name="python -m llava_server")

    host: str = Field("127.0.0.1", description="Address to listen on; 0.0.0.0 is every network card.")
    port: int = Field(8000, ge=0, le=65535, description="TCP port; 0 takes any free one.")
    admin_host: str = Field("127.0.0.1", description="Address of the operator's port; it asks for no key.")
    admin_port: int | None = Field(
        None,
        ge=0,
        le=65535,
        description="Port for /metrics, health and /workers; none: /metrics is on the API's, behind a key.",
    )
    auth: bool = Field(True, description="Ask for API keys; without, whoever reaches the port may ask.")
    api_keys: Annotated[tuple[SecretStr, ...], NoDecode] = Field(
        (), description="Keys besides those of 'llava-serve keys', separated by commas."
    )
    api_keys_file: Path | None = Field(None, description="File with one API key a line (a secret).")

    max_body_mb: int = Field(32, ge=1, le=128, description="Largest request body, MiB.")
    max_inflight_body_mb: int = Field(
        512, ge=1, le=65536, description="Bodies of all open requests together, MiB; above: 503."
    )
    body_timeout_s: float = Field(60.0, gt=0, le=3600, description="Time for a request body to arrive, s.")
    max_open_requests: int = Field(
        1024, ge=1, le=100_000, description="Chat requests open at once; above: 503."
    )
    max_text_kb: int = Field(1024, ge=1, le=65536, description="Text of one request, KiB.")
    max_images: int = Field(8, ge=0, le=64, description="Pictures of one request.")
    max_image_mb: int = Field(20, ge=1, le=128, description="One picture's file, MiB.")
    max_image_mp: int = Field(40, ge=1, le=178, description="One picture's size, million pixels.")
    image_workers: int = Field(2, ge=1, le=64, description="Child processes that decode pictures.")
    image_cache_mb: int = Field(64, ge=0, le=65536, description="Fitted pictures kept in memory, MiB.")

    image_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Hosts that pictures may be fetched from, separated by commas: name, *.name, name:port; "
        "none: no picture is fetched.",
    )
    image_allow_http: bool = Field(False, description="Fetch pictures by http:// too.")
    image_fetch_timeout_s: float = Field(10.0, gt=0, le=120, description="Time to fetch one picture, s.")

    max_queued: int = Field(1024, ge=1, le=1_000_000, description="Jobs waiting for a worker; above: 503.")
    max_queued_tokens: int = Field(
        10_000_000, ge=1, le=10**12, description="Tokens that waiting jobs may take together; above: 503."
    )
    max_tenant_jobs: int = Field(
        256, ge=1, le=1_000_000, description="Jobs of one API key, waiting or running; above: 429."
    )
    max_tenant_tokens: int = Field(
        10_000_000, ge=1, le=10**12, description="Tokens that one API key's jobs may take; above: 429."
    )
    file_days: float = Field(7.0, gt=0, le=365, description="How long files and batches are kept, days.")
    max_files: int = Field(100, ge=1, le=10_000, description="Files of one API key; above: 429.")
    max_files_mb: int = Field(
        128, ge=1, le=65536, description="Files of one API key together, MiB of Redis's memory; above: 429."
    )
    max_all_files_mb: int = Field(
        256, ge=1, le=1 << 20, description="Everybody's files together, MiB of Redis's memory; above: 503."
    )
    max_batches: int = Field(16, ge=1, le=1000, description="Unfinished batches of one API key; above: 429.")
    max_batch_lines: int = Field(10_000, ge=1, le=100_000, description="Requests of one batch.")
    max_batch_output_mb: int = Field(64, ge=1, le=1024, description="Answers of one batch together, MiB.")
    batch_parallel: int = Field(
        8, ge=1, le=1024, description="Requests of batches that a controller has in the queue at once."
    )
    request_timeout_s: float = Field(600.0, gt=0, le=86400, description="A request's whole life, s.")
    queue_timeout_s: float = Field(300.0, gt=0, le=86400, description="Wait for a request's first token, s.")
    send_timeout_s: float = Field(
        60.0, gt=0, le=3600, description="A reader that takes nothing so long is cut, s."
    )
    keepalive_s: float = Field(
        10.0, gt=0, le=3600, description="A comment on a silent stream every so often, s."
    )

    orphan_grace_s: float = Field(
        30.0, gt=0, le=3600, description="A kept answer without a reader is cancelled after so long, s."
    )

    drain_timeout_s: float = Field(
        120.0, ge=0, le=86400, description="After SIGTERM: time for open answers, s."
    )
    drain_grace_s: float = Field(
        0.0, ge=0, le=600, description="After SIGTERM: new requests are still taken for so long, s."
    )
    log_format: LogFormat = Field("text", description="Lines for people, or JSON, one object a line.")

    @field_validator("api_keys", "image_hosts", mode="before")
    @classmethod
    def _split_list(cls, value: Any) -> Any:
        if isinstance(value, str):
            return tuple(key.strip() for key in value.split(",") if key.strip())
        return value

    @field_validator("image_hosts")
    @classmethod
    def _check_hosts(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        hosts = tuple(host.lower() for host in value)
        for host in hosts:
            if not HOST_RULE.fullmatch(host):
                raise ValueError(
                    f"{host!r} is not a host's name, *.name or name:port; addresses are not taken"
                )
        return hosts

    @field_validator("api_keys")
    @classmethod
    def _check_keys(cls, value: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        if any(len(key.get_secret_value()) < _MIN_KEY_LENGTH for key in value):
            raise ValueError(f"each key needs at least {_MIN_KEY_LENGTH} characters")
        return value


def load_settings(arguments: Sequence[str]) -> Settings:
    """Read the server's settings. Exit with status 2 and a message if a value is invalid."""
    return Settings.load(arguments)
