"""Opens a model with the transformers engine: creates the engine, tokenizer, prompt builder and heartbeat."""

from __future__ import annotations

import logging
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from llava_wire.messages.heartbeat import EngineInfo, ImageSpec, KernelInfo

from llava_worker.engine.startup.engine_config import EngineConfig
from llava_worker.language.chat_template_files import has_chat_template
from llava_worker.language.conversation_templates import choose_template
from llava_worker.language.image_tokens import ProcessorExpander
from llava_worker.language.prompt_builder import PromptBuilder
from llava_worker.language.prompt_formats import ChatTemplateError, PromptTemplate
from llava_worker.loaded_model import (
    LoadedModel,
    StartupTimes,
    conversation_errors,
    make_grammars,
    make_heartbeat,
    require_modules,
    served_name,
    traced_engine,
)
from llava_worker.model_digest import digest_transformers
from llava_worker.selection_log import log_kernels
from llava_worker.settings import Settings

if TYPE_CHECKING:
    from llava_worker.engine.transformers.build import TransformersModelInfo
    from llava_worker.language.hf_tokenizer import HFTokenizer
    from llava_worker.language.template_process import TemplateProcess

__all__ = ["open_transformers"]

_PACKAGES = ("transformers", "jinja2", "PIL")
# The maximum side of an image in pixels. Larger images are reduced by the server. Models with variable
# resolution use at most about this resolution by default.
_MAX_SIDE = 2048
_TYPICAL_SIZE = (640, 480)  # of an image, for the estimate of its number of tokens

logger = logging.getLogger(__name__)


def open_transformers(folder: Path, settings: Settings, config: EngineConfig) -> LoadedModel:
    """Load the model. Raises StartupError, TokenizerError, ValueError or OSError."""
    require_modules(*_PACKAGES)
    started_at = time.monotonic()
    from llava_worker.engine.transformers.build import build_transformers_engine
    from llava_worker.engine.transformers.checkpoint_check import CheckpointCheck
    from llava_worker.language.hf_tokenizer import HFTokenizer
    from llava_worker.language.template_process import TemplateProcess
    from llava_worker.language.tokenizer_check import TokenizerCheck

    # Start these processes early, because importing transformers takes seconds.
    process, checkpoint_check = TemplateProcess(), CheckpointCheck()
    imported_at = time.monotonic()
    tokenizer_check = TokenizerCheck()
    tokenizer_check.check(folder)  # before transformers loads the tokenizer
    tokenizer_check.close()
    engine, info = build_transformers_engine(config, checkpoint_check)
    checkpoint_check.close()
    tokenizer = HFTokenizer(
        folder,
        image_token_id=info.image_token_id,
        vocab_size=info.vocab_size,
        adds_bos=info.processor.adds_bos,
    )
    num_tokens = len(info.processor.encode(info.processor.replacements([_TYPICAL_SIZE])[0]))
    spec = ImageSpec(side=_MAX_SIDE, fit="rgb", tokens_per_tile=num_tokens)
    with conversation_errors(settings):
        template = _choose_template(folder, settings, info, tokenizer, process)
        expander = ProcessorExpander(
            info.processor, special_tokens=tokenizer.special_tokens, max_side=_MAX_SIDE
        )
        prompts = PromptBuilder(
            tokenizer,
            template,
            expander=expander,
            context_length=engine.context_length,
        )
    name = settings.served_model_name or served_name(settings.model, folder)
    times = StartupTimes(
        imported_at - started_at, info.weights_s, info.warmup_s, time.monotonic() - started_at
    )
    kernels = KernelInfo(source="torch")
    log_kernels(kernels)
    logger.info("loaded %s with the transformers engine in %s; batching: %s", folder, times, info.batching)
    heartbeat = make_heartbeat(
        engine,
        tokenizer,
        spec,
        name,
        digest_transformers(info.weights_digest, info.precision, template, folder=folder),
        EngineInfo(name="transformers", batching=info.batching),
        device=info.device,
        precision=info.precision,
        kernels=kernels,
        stats={f"start_{part}": seconds for part, seconds in asdict(times).items()},
    )
    grammars = make_grammars(tokenizer, vocab_size=info.vocab_size, eos_ids=info.eos_ids)
    traced = traced_engine(engine, settings, name, engine.timer)
    return LoadedModel(traced, tokenizer, prompts, heartbeat, times, grammars)


def _choose_template(
    folder: Path,
    settings: Settings,
    info: TransformersModelInfo,
    tokenizer: HFTokenizer,
    process: TemplateProcess,
) -> PromptTemplate:
    """Return the configured template. "auto" is the checkpoint's own one. Raises ChatTemplateError."""
    conversation = settings.conversation
    if conversation == "auto":
        if has_chat_template(folder):
            conversation = "checkpoint"
        elif info.model_type == "paligemma":
            conversation = "paligemma"
        else:
            raise ChatTemplateError(
                f"No chat template exists in {folder}. Select a built-in template with --conversation."
            )
    return choose_template(
        conversation,
        folder=folder,
        tokenizer=tokenizer,
        process=process,
        image_token=info.processor.placeholder,
    )
