"""The settings of a worker process: defaults, ``LLAVA_*`` variables, then flags; validated at startup.

``python -m llava_worker --help`` lists every flag.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal, TypeAlias

from llava_wire.settings import ServiceSettings
from pydantic import Field, field_validator
from pydantic_settings import SettingsConfigDict

from llava_worker.language.templates import CONVERSATION_TEMPLATES

__all__ = ["Precision", "Settings", "load_settings"]

Precision: TypeAlias = Literal["auto", "fp32", "bf16", "fp16", "int8", "int4", "w4a16", "w8a8", "fp8"]


class Settings(ServiceSettings):
    """The settings of a worker process."""

    program: ClassVar[str] = "llava-worker"
    model_config = SettingsConfigDict(cli_prog_name="python -m llava_worker")

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

    hang_timeout_s: float = Field(30.0, gt=0, le=3600, description="A step longer than this hangs, s.")
    drain_timeout_s: float = Field(
        0.0, ge=0, le=86400, description="After SIGTERM: time to finish answers before handing them on, s."
    )
    trace_steps: Path | None = Field(
        None, description="File for a timeline of every step (Perfetto); {pid} becomes the process's id."
    )

    echo_step_s: float = Field(0.0, ge=0, le=60, description="Time between two tokens of the echo model, s.")
    echo_faults: bool = Field(False, description="Prompts may ask the echo model to fail; for tests.")

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
        allowed = ["auto", "checkpoint", *sorted(CONVERSATION_TEMPLATES)]
        if value not in allowed:
            raise ValueError(f"must be one of {', '.join(allowed)}")
        return value


def load_settings(arguments: Sequence[str]) -> Settings:
    """Read a worker's settings. Exit with status 2 and a message if a value is invalid."""
    return Settings.load(arguments)
