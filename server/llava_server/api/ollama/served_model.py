"""Model names in Ollama's API, which have a tag: ``tiny-llava:latest`` is the served model ``tiny-llava``."""

from __future__ import annotations

from llava_server.worker_registry import ServedModel, WorkerRegistry

__all__ = ["find_model", "tagged_name"]

_DEFAULT_TAG = ":latest"


def tagged_name(model: ServedModel) -> str:
    """Return the name of a model with a tag. Ollama's clients expect that each name in a list has one."""
    has_tag = ":" in model.name.rpartition("/")[2]
    return model.name if has_tag else f"{model.name}{_DEFAULT_TAG}"


async def find_model(registry: WorkerRegistry, name: str) -> ServedModel:
    """Return a model, whose default tag can be omitted. Raises the same errors as ``WorkerRegistry.find``."""
    is_exact = any(model.name == name for model in registry.models)
    return await registry.find(name if is_exact else name.removesuffix(_DEFAULT_TAG) or name)
