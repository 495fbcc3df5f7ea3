"""Settings of a worker process, read at startup.

Flags override ``LLAVA_*`` environment variables, which override the defaults. For a list of all flags, run
``python -m llava_worker --help``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal, TypeAlias

from llava_wire.base_settings import ServiceSettings
from pydantic import Field, field_validator
from pydantic_settings import SettingsConfigDict

from llava_worker.choose_engine import EngineSetting
from llava_worker.language.conversation_templates import CONVERSATION_TEMPLATES

__all__ = ["Precision", "Settings", "load_settings"]

Precision: TypeAlias = Literal["auto", "fp32", "bf16", "fp16", "int8", "int4", "w4a16", "w8a8", "fp8"]


class Settings(ServiceSettings):
    """Settings of a worker process."""

    program: ClassVar[str] = "llava-worker"
    model_config = SettingsConfigDict(cli_prog_name="python -m llava_worker")

    model: str = Field(
        "tiny",
        min_length=1,
        description="Model folder, Hugging Face Hub ID, 'tiny' (the bundled model) or 'echo' (no model; for "
        "tests).",
    )
    engine: EngineSetting = Field(
        "auto",
        description="Engine that runs the model. 'native' supports LLaVA, and 'transformers' supports most "
        "vision-language models. 'auto' selects the native engine if it supports the model's config.json.",
    )
    served_model_name: str | None = Field(
        None,
        min_length=1,
        description="Model name that clients send in requests. Defaults to the folder's name or the Hub ID.",
    )
    conversation: str = Field(
        "auto",
        description="Name of the conversation template. 'auto' selects it based on the model's config.json; "
        "'checkpoint' uses the checkpoint's own chat template.",
    )
    prompt_style: Literal["original", "hf"] = Field(
        "original",
        description="Prompt format for LLaVA-1.5. 'hf' builds the same prompts as the transformers "
        "processor, for comparison.",
    )
    precision: Precision = Field(
        "auto",
        description="Data type of weights and computation. w4a16, w8a8 and fp8 require a GPU; int8 and int4 "
        "on a GPU require bitsandbytes.",
    )
    device: str = Field(
        "auto",
        description="Device to run the model on: cpu, cuda, cuda:1, etc. 'auto' uses a GPU if available.",
    )
    tensor_parallel: int = Field(
        1,
        ge=1,
        le=64,
        description="Number of GPUs to split the model across, starting with the configured device. On a "
        "CPU, this is the number of processes.",
    )
    threads: int | None = Field(
        None,
        ge=1,
        le=4096,
        description="Number of CPU threads. Defaults to one per core, but at most one per 16 MiB of weights.",
    )
    max_num_sequences: int = Field(
        16, ge=1, le=1024, description="Maximum number of sequences processed concurrently."
    )
    max_batch_tokens: int | None = Field(
        None,
        ge=1,
        le=32768,
        description="Maximum number of tokens processed in one step, at least one for each sequence. More "
        "tokens increase the throughput of prompts, but also the longest gap between the tokens of a running "
        "response. Defaults to 512 on a CPU. On a GPU, the default is measured at startup (2048, 4096 or "
        "8192).",
    )
    max_token_gap_ms: int | None = Field(
        None,
        ge=0,
        le=60_000,
        description="Maximum duration of a step that computes prompts while responses are running, in "
        "milliseconds. The worker learns from measured steps how many prompt tokens fit. A smaller limit "
        "results in smoother streams, but prompts take longer. An image is never divided, and prompts get at "
        "least as much time as the running responses. 0 disables the limit. Defaults to 400 on a CPU and 100 "
        "on a GPU.",
    )
    gpu_memory_utilization: float = Field(
        0.9,
        gt=0,
        le=1,
        description="Fraction of the GPU's memory that the worker may use. The KV cache takes what the "
        "weights, the largest step and the CUDA graphs leave. Has no effect on a CPU.",
    )
    kv_cache_mb: int | None = Field(
        None,
        ge=1,
        description="Maximum size of the KV cache, in MiB. Defaults to the remaining memory on a GPU "
        "(gpu_memory_utilization), and to a fraction of free memory, normally at most 4 GiB, on a CPU.",
    )
    kv_cache_dtype: Literal["auto", "int8"] = Field(
        "auto",
        description="Data type of the KV cache. 'int8' stores twice as many tokens in the same amount of "
        "memory; 'auto' uses the data type of the computation.",
    )
    speculation: Literal["auto", "off"] = Field(
        "auto",
        description="Speculative decoding with draft tokens copied from the prompt. 'auto' uses it when it "
        "speeds up decoding. The output does not change.",
    )
    cuda_graphs: Literal["auto", "off"] = Field(
        "auto",
        description="CUDA graphs for short steps and image encoding. 'auto' uses them wherever capture is "
        "supported.",
    )
    overlap: Literal["auto", "off"] = Field(
        "auto",
        description="Asynchronous scheduling on GPUs. 'auto' launches a step before the tokens of the "
        "previous step have been read.",
    )
    vision_cache_mb: int = Field(
        256, ge=0, description="Maximum size of the cache for encoded images, in MiB. 0 disables the cache."
    )
    vision_tower: str | None = Field(
        None,
        min_length=1,
        description="Folder or Hub ID of the vision tower, for original checkpoints that do not include it.",
    )
    base_model: str | None = Field(
        None,
        min_length=1,
        description="Folder or Hub ID of the base model, for LoRA and projector-only checkpoints.",
    )
    loadable_models: Path | None = Field(
        None,
        description="Folder with models that an operator may load into the running worker. If unset, load "
        "and unload commands are rejected.",
    )
    weights_cache: str = Field(
        "auto",
        min_length=1,
        description="Folder for quantized weights on a CPU, so that the next start takes less time, and "
        "workers on the same machine share memory. 'auto' uses the user's cache folder for models over 256 "
        "MiB; 'off' disables the cache.",
    )
    allow_pickle: bool = Field(
        False, description="Also read weights from .bin files. Enable only for files from a trusted source."
    )

    hang_timeout_s: float = Field(
        30.0,
        ge=0.1,
        le=3600,
        description="Maximum duration of an engine step, in seconds. If a step takes longer, the worker "
        "exits.",
    )
    drain_timeout_s: float = Field(
        0.0,
        ge=0,
        le=86400,
        description="Time allowed for running requests to finish after SIGTERM, in seconds. Unfinished "
        "requests are then handed over to other workers.",
    )
    trace_steps: Path | None = Field(
        None,
        description="File for a timeline of all engine steps, which can be opened in Perfetto. {pid} in the "
        "path is replaced by the process ID.",
    )

    echo_step_s: float = Field(
        0.0, ge=0, le=60, description="Duration of each step of the echo model, in seconds."
    )
    echo_faults: bool = Field(
        False, description="Allow prompts to trigger failures in the echo model. For tests only."
    )

    @field_validator("loadable_models", mode="before")
    @classmethod
    def _check_loadable_models_are_named(cls, value: object) -> object:
        if value == "":  # Path("") would be the working directory
            raise ValueError("must be an existing folder")
        return value

    @field_validator("loadable_models")
    @classmethod
    def _check_loadable_models(cls, value: Path | None) -> Path | None:
        if value is not None and not value.expanduser().is_dir():
            raise ValueError("must be an existing folder")
        return value.expanduser().resolve() if value is not None else None

    @field_validator("conversation")
    @classmethod
    def _check_conversation(cls, value: str) -> str:
        allowed = ["auto", "checkpoint", *sorted(CONVERSATION_TEMPLATES)]
        if value not in allowed:
            raise ValueError(f"must be one of {', '.join(allowed)}")
        return value


def load_settings(arguments: Sequence[str]) -> Settings:
    """Return the worker's settings. Exit with status 2 and an error message if a value is invalid."""
    return Settings.load(arguments)
