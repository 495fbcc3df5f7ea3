"""From settings to a model that is ready to be asked: the engine, its tokenizer and what to announce.

Torch is imported here, and only when a model is asked for that needs it.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import socket
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

from llava_wire import Heartbeat, ImageSpec

from llava_worker.echo import EchoEngine
from llava_worker.engine_thread import Engine
from llava_worker.load_progress import LoadProgress
from llava_worker.prompt import PromptBuilder
from llava_worker.settings import Settings
from llava_worker.template_choice import choose_template
from llava_worker.tokenizer import ByteTokenizer, TextTokenizer, TokenizerError

__all__ = ["Model", "StartupError", "open_model"]

_ECHO_SPEC = ImageSpec(side=32, tokens_per_tile=4)
_HUB_FILES = ["*.safetensors", "*.json"]  # nothing that could carry code

logger = logging.getLogger(__name__)


class StartupError(Exception):
    """The worker cannot start as it is set up; the message says what to change."""


@dataclass(frozen=True)
class Model:
    """Everything a Worker needs but the queue."""

    engine: Engine
    tokenizer: TextTokenizer
    prompts: PromptBuilder
    heartbeat: Heartbeat


def open_model(settings: Settings) -> Model:
    """Load what ``settings.model`` names. Takes as long as the weights do. Raises StartupError."""
    if settings.model == "echo":
        return _open_echo(settings)
    folder = _find_folder(settings.model)
    _require("torch", "safetensors", "tokenizers", "numpy")
    return _open_folder(folder, settings)


def _open_echo(settings: Settings) -> Model:
    engine = EchoEngine(
        max_sequences=settings.max_num_sequences,
        step_s=settings.echo_step_s,
        has_faults=settings.echo_faults,
    )
    name = settings.served_model_name or "echo"
    tokenizer = ByteTokenizer()
    try:
        prompts = PromptBuilder(
            tokenizer,
            choose_template(settings),
            image_spec=_ECHO_SPEC,
            context_length=engine.context_length,
        )
    except TokenizerError as error:
        raise _misfit(settings, error) from error
    return _assemble(engine, tokenizer, prompts, _ECHO_SPEC, _Label(name, device="none", precision="none"))


def _open_folder(folder: Path, settings: Settings) -> Model:
    from llava_worker.engine.load import CheckpointError, load_engine
    from llava_worker.file_tokenizer import FileTokenizer

    began = time.monotonic()
    base = _find_folder(settings.base_model) if settings.base_model else None
    described = folder if base is None or (folder / "tokenizer.json").is_file() else base
    try:
        engine, info = load_engine(
            folder,
            precision=settings.precision,
            device=settings.device,
            max_num_sequences=settings.max_num_sequences,
            kv_cache_bytes=settings.kv_cache_mb << 20 if settings.kv_cache_mb else None,
            num_threads=settings.threads,
            vision_tower=_find_folder(settings.vision_tower) if settings.vision_tower else None,
            base=base,
            allow_pickle=settings.allow_pickle,
            on_progress=LoadProgress(),
        )
        tokenizer = FileTokenizer(described, image_id=info.image_token_id)
    except (CheckpointError, TokenizerError, ValueError) as error:
        raise StartupError(f"model {settings.model!r} cannot be served: {error}") from error
    logger.info("loaded %s in %.1f s", folder, time.monotonic() - began)
    spec = ImageSpec(
        side=info.image_side,
        fit=info.fit,
        background=info.background,
        tokens_per_tile=info.tokens_per_tile,
        grid=info.grid,
    )
    try:
        prompts = PromptBuilder(
            tokenizer,
            choose_template(settings, described, tokenizer),
            image_spec=spec,
            context_length=engine.context_length,
            has_image_marks=info.has_image_marks,
        )
    except TokenizerError as error:
        raise _misfit(settings, error) from error
    name = settings.served_model_name or _served_name(settings.model, folder)
    return _assemble(engine, tokenizer, prompts, spec, _Label(name, info.device, info.precision))


def _misfit(settings: Settings, error: TokenizerError) -> StartupError:
    return StartupError(f"conversation {settings.conversation!r} does not fit the model: {error}")


@dataclass(frozen=True)
class _Label:
    model: str
    device: str
    precision: str


def _assemble(
    engine: Engine, tokenizer: TextTokenizer, prompts: PromptBuilder, spec: ImageSpec, label: _Label
) -> Model:
    heartbeat = Heartbeat(
        worker_id=f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}",
        model=label.model,
        image_spec=spec,
        context_length=engine.context_length,
        capacity=engine.max_sequences,
        device=label.device,
        precision=label.precision,
        started_at=time.time(),
    )
    return Model(engine, tokenizer, prompts, heartbeat)


def _served_name(model: str, folder: Path) -> str:
    if model == "tiny":
        return "tiny-llava"
    return folder.name if Path(model).is_dir() else model


def _find_folder(model: str) -> Path:
    """The folder that a model's name stands for; a name on the hub is downloaded first."""
    if model == "tiny":
        folder = Path(__file__).parent / "tiny"
        if not (folder / "config.json").is_file():
            raise StartupError(f"the bundled model is missing from {folder}: install llava-serve again")
        return folder
    path = Path(model).expanduser()
    if path.is_dir():
        return path.resolve()
    if model.startswith((".", "/", "~")) or model.count("/") != 1:
        raise StartupError(
            f"model {model!r} is neither a folder nor 'tiny', 'echo' or a name on the hub such as "
            "'llava-hf/llava-1.5-7b-hf'"
        )
    return _download(model)


def _download(name: str) -> Path:
    if importlib.util.find_spec("huggingface_hub") is None:
        raise StartupError(
            f"model {name!r} would come from the hub: pip install 'llava-serve[hub]', or give a folder"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    logger.info("fetching %s from the hub", name)
    try:
        return Path(snapshot_download(name, allow_patterns=_HUB_FILES))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise StartupError(f"model {name!r} cannot be fetched from the hub: {error}") from error


def _require(*modules: str) -> None:
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        raise StartupError(f"this model needs {', '.join(missing)}: pip install 'llava-serve[worker]'")
