"""The one settings object of the process: defaults, ``LLAVA_*`` variables, then flags; checked at start.

``python -m llava_worker --help`` lists every flag. The queue's URL may come from a file
(``LLAVA_REDIS_URL_FILE``), as Docker and Kubernetes give secrets, and is never printed.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, CliApp, SettingsConfigDict

from llava_worker.language.templates import CONVERSATIONS

__all__ = ["Precision", "Settings", "load_settings"]

Precision: TypeAlias = Literal["auto", "fp32", "bf16", "fp16", "int8", "int4", "w4a16", "w8a8", "fp8"]


class Settings(BaseSettings):
    """What a worker may be told from outside."""

    model_config = SettingsConfigDict(
        env_prefix="LLAVA_",
        frozen=True,
        extra="ignore",
        hide_input_in_errors=True,
        cli_prog_name="python -m llava_worker",
        cli_kebab_case=True,
        cli_hide_none_type=True,
        cli_avoid_json=True,
        cli_implicit_flags=True,
    )

    redis_url: SecretStr = Field(
        SecretStr("redis://127.0.0.1:6379/0"), description="Redis or Valkey: redis://, rediss:// or unix://."
    )
    redis_url_file: Path | None = Field(None, description="File that holds the Redis URL (a secret).")
    model: str = Field(
        "tiny",
        min_length=1,
        description="A folder, a name on the Hugging Face hub, 'tiny' (bundled) or 'echo' (no model at all).",
    )
    served_model_name: str | None = Field(
        None, min_length=1, description="What requests call the model; else its own name."
    )
    conversation: str = Field(
        "auto",
        description="Conversation template by name; auto: by the model's config.json; checkpoint: its own "
        "chat template.",
    )
    prompt_style: Literal["original", "hf"] = Field(
        "original", description="hf: the prompt of transformers' processor for LLaVA-1.5, to compare with."
    )
    precision: Precision = Field(
        "auto",
        description="Number format; int8 and int4 on a GPU need bitsandbytes; w4a16, w8a8, fp8 are for GPUs.",
    )
    device: str = Field("auto", description="cpu, cuda, cuda:1 ...; auto takes a GPU if there is one.")
    tensor_parallel: int = Field(
        1, ge=1, le=64, description="GPUs that share one model, from the device on; on a CPU processes."
    )
    threads: int | None = Field(None, ge=1, le=4096, description="CPU threads; else one a core.")
    max_num_sequences: int = Field(16, ge=1, le=1024, description="Answers computed at once.")
    kv_cache_mb: int | None = Field(
        None,
        ge=1,
        description="Most memory for keys and values, MiB; else a share, on CPUs 4 GiB at most.",
    )
    kv_cache_dtype: Literal["auto", "int8"] = Field(
        "auto", description="int8 keeps twice the tokens in the same memory; auto: exactly, as computed."
    )
    speculation: Literal["auto", "off"] = Field(
        "auto", description="Guess tokens that repeat the prompt where that pays; answers stay the same."
    )
    cuda_graphs: Literal["auto", "off"] = Field(
        "auto", description="Give a GPU decoding and pictures as recordings where they can be recorded."
    )
    overlap: Literal["auto", "off"] = Field(
        "auto", description="Give a GPU its next step before the tokens of the one before are read."
    )
    vision_cache_mb: int = Field(
        256, ge=0, description="Most memory for pictures already encoded, MiB; 0 keeps none."
    )
    vision_tower: str | None = Field(
        None, min_length=1, description="Folder or hub name of the tower an original checkpoint only names."
    )
    base_model: str | None = Field(
        None, min_length=1, description="Folder or hub name of the model that a LoRA folder adapts."
    )
    loadable_models: Path | None = Field(
        None, description="Folder whose models an operator may load into this worker; none: no orders."
    )
    allow_pickle: bool = Field(False, description="Read .bin weights too: only from people you trust.")

    lease_s: float = Field(5.0, gt=0, le=600, description="A worker silent for so long is dead, s.")
    hang_timeout_s: float = Field(30.0, gt=0, le=3600, description="A step longer than this hangs, s.")
    drain_timeout_s: float = Field(
        0.0, ge=0, le=86400, description="After SIGTERM: time to finish answers before handing them on, s."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level logged.")
    otel: bool = Field(
        False, description="Send OpenTelemetry traces by OTLP over HTTP; OTEL_* variables say where to."
    )
    trace_steps: Path | None = Field(
        None, description="File for a timeline of every step (Perfetto); {pid} becomes the process's id."
    )

    echo_step_s: float = Field(0.0, ge=0, le=60, description="Time between two tokens of the echo model, s.")
    echo_faults: bool = Field(False, description="Prompts may ask the echo model to fail; for tests.")

    @model_validator(mode="before")
    @classmethod
    def _read_secret_file(cls, values: dict[str, Any]) -> dict[str, Any]:
        path = values.get("redis_url_file")
        if not path:
            return values
        if values.get("redis_url"):
            raise ValueError("redis_url and redis_url_file are both given; give one")
        try:
            return {**values, "redis_url": Path(path).read_text("utf-8").strip()}
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"redis_url_file {path} cannot be read: {error}") from error

    @field_validator("redis_url")
    @classmethod
    def _check_redis_url(cls, value: SecretStr) -> SecretStr:
        if not value.get_secret_value().startswith(("redis://", "rediss://", "unix://")):
            raise ValueError("must start with redis://, rediss:// or unix://")
        return value

    @field_validator("loadable_models", mode="before")
    @classmethod
    def _check_loadable_models_are_named(cls, value: object) -> object:
        if value == "":  # would be read as the folder in which the worker runs
            raise ValueError("must be a folder that exists")
        return value

    @field_validator("loadable_models")
    @classmethod
    def _check_loadable_models(cls, value: Path | None) -> Path | None:
        if value is not None and not value.expanduser().is_dir():
            raise ValueError("must be a folder that exists")
        return value.expanduser().resolve() if value is not None else None

    @field_validator("conversation")
    @classmethod
    def _check_conversation(cls, value: str) -> str:
        allowed = ["auto", "checkpoint", *sorted(CONVERSATIONS)]
        if value not in allowed:
            raise ValueError(f"must be one of {', '.join(allowed)}")
        return value


def load_settings(arguments: Sequence[str]) -> Settings:
    """From variables and command line. A wrong value ends the process with status 2 and says why."""
    try:
        return CliApp.run(Settings, cli_args=list(arguments))
    except ValidationError as error:
        lines = [f"llava-worker: {_complaint(detail)}" for detail in error.errors()]
        sys.stderr.write("\n".join(lines) + "\n")
        raise SystemExit(2) from None  # the chain would print the values, and one is a secret


def _complaint(detail: Any) -> str:
    name = "_".join(str(part) for part in detail["loc"])
    message = str(detail["msg"]).removeprefix("Value error, ")
    if not name:
        return message
    got = "" if name == "redis_url" else f" (got {detail.get('input')!r})"
    known = Settings.model_fields.get(name)
    what = f"; {known.description}" if known else ""
    return f"LLAVA_{name.upper()} / --{name.replace('_', '-')}: {message}{got}{what}"
