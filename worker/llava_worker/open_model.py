"""Opens the configured model: creates the engine, tokenizer, prompt builder and heartbeat.

Torch is imported only if a model other than the echo model is loaded or may be loaded later.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import math
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from llava_wire.messages.heartbeat import EngineInfo, ImageSpec, KernelInfo

from llava_worker.choose_engine import choose_engine
from llava_worker.echo_engine import EchoEngine
from llava_worker.engine.startup.engine_config import EngineConfig
from llava_worker.engine_thread import end_process
from llava_worker.import_torch import collect_garbage, import_torch
from llava_worker.language.conversation_templates import choose_template
from llava_worker.language.image_tokens import TileExpander
from llava_worker.language.prompt_builder import PromptBuilder
from llava_worker.language.prompt_formats import PromptTemplate
from llava_worker.language.tokenizer import ByteTokenizer, TokenizerError
from llava_worker.load_progress import LoadProgress, ProgressCallback
from llava_worker.loaded_model import (
    LoadedModel,
    StartupError,
    StartupTimes,
    conversation_errors,
    make_grammars,
    make_heartbeat,
    missing_modules,
    require_modules,
    served_name,
    traced_engine,
)
from llava_worker.model.config.image_grid import ImageLayout
from llava_worker.model.config.model_config import find_vision_tower, read_config
from llava_worker.model.heap import trim_heap
from llava_worker.model.private_folder import user_cache
from llava_worker.model_digest import digest_checkpoint, digest_echo
from llava_worker.model_thread import ModelThread
from llava_worker.open_transformers import open_transformers
from llava_worker.selection_log import log_kernels
from llava_worker.settings import Settings

if TYPE_CHECKING:
    from llava_worker.engine.startup.model_info import ModelInfo
    from llava_worker.language.hf_tokenizer import HFTokenizer
    from llava_worker.language.template_process import TemplateProcess
    from llava_worker.language.tokenizer_check import TokenizerCheck

__all__ = ["LoadedModel", "StartupError", "StartupTimes", "image_spec", "open_in_thread", "open_model"]

_ENGINE_MODULES = (
    "llava_worker.engine.startup.build_engine",
    "llava_worker.engine.structured_output.grammar_cache",
    "llava_worker.language.hf_tokenizer",
    "llava_worker.language.tokenizer_check",
)
_ENGINE_PACKAGES = ("torch", "safetensors", "tokenizers", "numpy", "llguidance")
_MIN_CACHED_BYTES = 256 << 20  # smaller models load quickly anyway
_ECHO_LAYOUT = ImageLayout(side=32, tokens_per_tile=4)
_ECHO_SPEC = ImageSpec(side=_ECHO_LAYOUT.side, tokens_per_tile=_ECHO_LAYOUT.tokens_per_tile)
# Files that may contain code are excluded, except for chat templates, which run only on request in a sandbox.
_HUB_FILES = ["*.safetensors", "*.json", "tokenizer.model", "merges.txt", "chat_template.jinja"]

logger = logging.getLogger(__name__)


def open_in_thread(settings: Settings, *, on_progress: ProgressCallback | None = None) -> Future[LoadedModel]:
    """Load ``settings.model`` in a new thread, which then runs its engine.

    The result may be a StartupError. In this case, the thread exits.
    """
    thread = ModelThread()

    def load() -> LoadedModel:
        try:
            return replace(open_model(settings, on_progress=on_progress), thread=thread)
        except BaseException:
            thread.close()
            raise

    return thread.submit(load)


def open_model(settings: Settings, *, on_progress: ProgressCallback | None = None) -> LoadedModel:
    """Load ``settings.model``. Raises StartupError."""
    if settings.model == "echo":
        return _open_echo(settings)
    try:
        folder = _find_folder(settings.model)
        require_modules(*_ENGINE_PACKAGES)
        base = _find_folder(settings.base_model) if settings.base_model else None
        config = _engine_config(settings, folder, base)
        if choose_engine(settings.engine, config.config_folder) == "transformers":
            collect_garbage()
            return open_transformers(folder, settings, config)
        return _open_native(folder, settings, config, on_progress or LoadProgress())
    except (TokenizerError, ValueError, OSError) as error:  # CheckpointError is a ValueError
        raise StartupError(f"Model {settings.model!r} cannot be served: {error}") from error


def _open_echo(settings: Settings) -> LoadedModel:
    if settings.loadable_models is not None and not missing_modules(_ENGINE_PACKAGES):
        _import_engine()
    engine = EchoEngine(
        max_sequences=settings.max_num_sequences,
        step_s=settings.echo_step_s,
        has_faults=settings.echo_faults,
    )
    name = settings.served_model_name or "echo"
    tokenizer = ByteTokenizer()
    with conversation_errors(settings):
        template = choose_template(settings.conversation, settings.prompt_style)
        prompts = PromptBuilder(
            tokenizer,
            template,
            expander=TileExpander(_ECHO_LAYOUT, tokenizer.image_token_id),
            context_length=engine.context_length,
        )
    digest = digest_echo(template)
    heartbeat = make_heartbeat(
        engine,
        tokenizer,
        _ECHO_SPEC,
        name,
        digest,
        EngineInfo(name="echo", batching="continuous"),
        device="none",
        precision="none",
    )
    return LoadedModel(traced_engine(engine, settings, name), tokenizer, prompts, heartbeat)


def _open_native(
    folder: Path, settings: Settings, config: EngineConfig, on_progress: ProgressCallback
) -> LoadedModel:
    """Load the model with the native engine. Raises StartupError, TokenizerError, ValueError or OSError."""
    started_at = time.monotonic()
    from llava_worker.language.tokenizer_check import TokenizerCheck

    tokenizer_check = TokenizerCheck()  # starts while torch is imported
    import_torch()
    from llava_worker.engine.startup.build_engine import build_engine
    from llava_worker.language.hf_tokenizer import has_tokenizer

    collect_garbage()
    imported_at = time.monotonic()
    tokenizer_folder = folder if config.base is None or has_tokenizer(folder) else config.base
    process = _start_template_process(settings)  # imports transformers while the model is loaded
    with ThreadPoolExecutor(1, thread_name_prefix="tokenizer") as executor:
        loading = executor.submit(_load_tokenizer, tokenizer_folder, config, tokenizer_check)
        engine, info = build_engine(
            config, on_progress=on_progress, on_lost_rank=end_process, defers_store=True
        )
        tokenizer = loading.result()
    with conversation_errors(settings):
        template = choose_template(
            settings.conversation,
            settings.prompt_style,
            folder=folder,
            tokenizer=tokenizer,
            base=config.base,
            process=process,
        )
        prompts = _prompt_builder(tokenizer, template, info, engine.context_length)
    name = settings.served_model_name or served_name(settings.model, folder)
    times = StartupTimes(
        imported_at - started_at, info.weights_s, info.warmup_s, time.monotonic() - started_at
    )
    logger.info("loaded %s in %s", folder, times)
    kernels = KernelInfo(**info.kernels._asdict())
    log_kernels(kernels)
    grammars = make_grammars(tokenizer, vocab_size=info.vocab_size, eos_ids=info.eos_ids)
    digest = digest_checkpoint(config, info, template, tokenizer_folder=tokenizer_folder)
    stats = {f"start_{part}": seconds for part, seconds in asdict(times).items()}
    heartbeat = make_heartbeat(
        engine,
        tokenizer,
        image_spec(info),
        name,
        digest,
        EngineInfo(name="native", batching="continuous"),
        device=info.device,
        precision=info.precision,
        kernels=kernels,
        stats=stats,
    )
    traced = traced_engine(engine, settings, name, engine.timer)
    trim_heap()  # loading has used more memory than serving does
    return LoadedModel(
        traced, tokenizer, prompts, heartbeat, times, grammars, unstored_weights=info.unstored_weights
    )


def _prompt_builder(
    tokenizer: HFTokenizer, template: PromptTemplate, info: ModelInfo, context_length: int
) -> PromptBuilder:
    return PromptBuilder(
        tokenizer,
        template,
        expander=TileExpander(info.layout, tokenizer.image_token_id),
        context_length=context_length,
        has_image_marks=info.has_image_marks,
    )


def _load_tokenizer(folder: Path, config: EngineConfig, check: TokenizerCheck) -> HFTokenizer:
    """Check and load the tokenizer in ``folder``. Raises TokenizerError or CheckpointError."""
    from llava_worker.language.hf_tokenizer import HFTokenizer

    check.check(folder)
    check.close()
    tower = config.vision_tower or find_vision_tower(config.config_folder)
    model = read_config(config.config_folder, tower)
    return HFTokenizer(folder, image_token_id=model.image_token_id, vocab_size=model.text_config.vocab_size)


def _start_template_process(settings: Settings) -> TemplateProcess | None:
    """Start the process that renders the checkpoint's chat template, if it is needed. Raises StartupError."""
    if settings.conversation != "checkpoint":
        return None
    require_modules("transformers", "jinja2")
    from llava_worker.language.template_process import TemplateProcess

    return TemplateProcess()


def _engine_config(settings: Settings, folder: Path, base: Path | None) -> EngineConfig:
    """Create the engine's configuration. Raises StartupError if the vision tower cannot be found."""
    return EngineConfig(
        folder,
        vision_tower=_find_folder(settings.vision_tower) if settings.vision_tower else None,
        base=base,
        allow_pickle=settings.allow_pickle,
        precision=settings.precision,
        device=settings.device,
        num_threads=settings.threads,
        tensor_parallel_size=settings.tensor_parallel,
        max_num_sequences=settings.max_num_sequences,
        max_batch_tokens=settings.max_batch_tokens,
        max_token_gap_s=_max_token_gap_s(settings.max_token_gap_ms),
        gpu_memory_utilization=settings.gpu_memory_utilization,
        kv_cache_bytes=settings.kv_cache_mb << 20 if settings.kv_cache_mb else None,
        kv_cache_dtype=settings.kv_cache_dtype,
        encoder_cache_bytes=settings.vision_cache_mb << 20,
        weights_cache=_weights_cache(settings.weights_cache),
        min_cached_bytes=_MIN_CACHED_BYTES if settings.weights_cache == "auto" else 0,
        use_speculation=settings.speculation == "auto",
        use_cuda_graphs=settings.cuda_graphs == "auto",
        use_async_scheduling=settings.overlap == "auto",
    )


def _max_token_gap_s(milliseconds: int | None) -> float | None:
    if milliseconds is None:
        return None
    return milliseconds / 1000 if milliseconds else math.inf


def _weights_cache(setting: str) -> Path | None:
    if setting == "off":
        return None
    return user_cache() / "weights" if setting == "auto" else Path(setting).expanduser().absolute()


def image_spec(info: ModelInfo) -> ImageSpec:
    """Return the model's image preprocessing parameters."""
    layout = info.layout
    return ImageSpec(
        side=layout.side,
        fit=layout.fit,
        background=info.background,
        tokens_per_tile=layout.tokens_per_tile,
        grid=layout.grid,
        single_tile_fit=layout.single_tile_fit,
        splits_several_images=layout.splits_several_images,
        max_tokens=layout.max_tokens if layout.has_grid else 0,
    )


def _find_folder(model: str) -> Path:
    """Return the model's folder. If it is a Hub ID, download the model first. Raises StartupError."""
    if model == "tiny":
        folder = Path(__file__).parent / "tiny"
        if not (folder / "config.json").is_file():
            raise StartupError(f"The bundled model is missing from {folder}. Reinstall llava-serve.")
        return folder
    path = Path(model).expanduser()
    if path.is_dir():
        return path.resolve()
    if model.startswith((".", "/", "~")) or model.count("/") != 1:
        raise StartupError(
            f"Model {model!r} is not a folder, 'tiny', 'echo' or a Hugging Face Hub ID such as "
            "'llava-hf/llava-1.5-7b-hf'."
        )
    return _download(model)


def _download(name: str) -> Path:
    if importlib.util.find_spec("huggingface_hub") is None:
        raise StartupError(
            f"Model {name!r} has to be downloaded from the Hugging Face Hub, which requires the hub extra. "
            "Run pip install 'llava-serve[hub]' or use a local folder."
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    logger.info("downloading %s from the Hugging Face Hub", name)
    try:
        return Path(snapshot_download(name, allow_patterns=_HUB_FILES))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise StartupError(
            f"Model {name!r} could not be downloaded from the Hugging Face Hub: {error}"
        ) from error


def _import_engine() -> None:
    """Import the modules that ``_open_native`` uses, before the worker registers.

    While Python loads torch's libraries, it holds the GIL, for 0.4 to 2 seconds on busy machines. If a
    registered worker loaded the first model, heartbeats would stop, and it could be declared lost.
    """
    for module in _ENGINE_MODULES:
        importlib.import_module(module)
