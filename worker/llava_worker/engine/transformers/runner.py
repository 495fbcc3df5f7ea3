"""Forward passes of a transformers model: one prompt, or one token for each sequence of a group."""

from __future__ import annotations

import inspect
from collections.abc import Sequence as Items
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from llava_worker.engine.core.sequence import Sequence
from llava_worker.engine.transformers.kv_cache import is_mergeable, merge_caches, select_rows
from llava_worker.engine.transformers.processor import ImageInputs

__all__ = ["Prefill", "SequenceGroup", "TransformersRunner"]


@dataclass(slots=True)
class Prefill:
    """A computed prompt.

    ``logits`` is fp32 [rows, vocab], for the last token or for all tokens. ``next_position`` is the position
    of the next token, [..., 1, 1] (some models have several position values per token).
    """

    cache: Any
    logits: Tensor
    next_position: Tensor

    @property
    def is_mergeable(self) -> bool:
        return is_mergeable(self.cache)


class SequenceGroup:
    """Sequences whose next tokens are computed in one forward pass, one row for each."""

    def __init__(self, sequence: Sequence, prefill: Prefill) -> None:
        self.sequences = [sequence]
        self.cache = prefill.cache
        self.positions = prefill.next_position  # [..., rows, 1]

    @property
    def length(self) -> int:
        """The number of computed tokens of the longest sequence."""
        return max(sequence.num_computed for sequence in self.sequences)

    @property
    def num_padded_tokens(self) -> int:
        """The size of the KV cache in tokens, including padding."""
        return len(self.sequences) * self.length

    def join(self, other: SequenceGroup) -> None:
        """Add the sequences of another group, which must not be used afterward."""
        self.sequences += other.sequences
        self.cache = merge_caches([self.cache, other.cache])
        self.positions = torch.cat([self.positions, other.positions], dim=-2)

    def keep(self, sequences: Items[Sequence]) -> None:
        """Remove all other sequences. At least one must remain."""
        rows = [row for row, sequence in enumerate(self.sequences) if sequence in sequences]
        if len(rows) == len(self.sequences):
            return
        self.sequences = [self.sequences[row] for row in rows]
        select_rows(self.cache, rows, self.length)
        self.positions = self.positions[..., rows, :]


class TransformersRunner:
    """Runs the model. The caller owns the sequences and their groups."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.device: torch.device = model.device
        self._text_config = model.config.get_text_config(decoder=True)
        parameters = inspect.signature(model.forward).parameters
        self._has_positions = "position_ids" in parameters
        self._keeps_logits = "logits_to_keep" in parameters

    @torch.inference_mode()
    def prefill(
        self, prompt_ids: list[int], images: ImageInputs | None, *, has_all_logits: bool = False
    ) -> Prefill:
        """Compute a prompt. Return the logits of its last token, or of all tokens."""
        from transformers.cache_utils import DynamicCache

        ids = torch.tensor([prompt_ids], device=self.device)
        inputs: dict[str, Any] = {"attention_mask": torch.ones_like(ids)}
        if images is not None:
            for name, types in images.token_types.items():
                inputs[name] = torch.tensor([[types.get(each, 0) for each in prompt_ids]], device=self.device)
            inputs |= {name: self._to_device(value) for name, value in images.tensors.items()}
        positions = self.model._prepare_position_ids_for_generation(ids, dict(inputs))
        output = self._forward(
            ids,
            cache=DynamicCache(config=self._text_config),
            positions=positions,
            is_first=True,
            num_logits=0 if has_all_logits else 1,
            **inputs,
        )
        logits = output.logits[0] if has_all_logits else output.logits[:, -1]
        return Prefill(output.past_key_values, logits.float(), positions[..., -1:] + 1)

    @torch.inference_mode()
    def decode(self, group: SequenceGroup, token_ids: Items[int]) -> Tensor:
        """Compute one token for each sequence. Return the logits that follow, fp32 [rows, vocab].

        The caller increments ``num_computed`` of the sequences.
        """
        ids = torch.tensor(token_ids, device=self.device)[:, None]
        lengths = torch.tensor([sequence.num_computed for sequence in group.sequences], device=self.device)
        columns = torch.arange(group.length + 1, device=self.device)
        mask = (columns >= group.length - lengths[:, None]).long()
        output = self._forward(
            ids,
            cache=group.cache,
            positions=group.positions,
            is_first=False,
            num_logits=1,
            attention_mask=mask,
        )
        group.cache = output.past_key_values
        group.positions = group.positions + 1
        logits: Tensor = output.logits[:, -1].float()
        return logits

    def release_memory(self) -> None:
        """Return the memory that torch caches to the device."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _forward(
        self, ids: Tensor, *, cache: Any, positions: Tensor, is_first: bool, num_logits: int, **inputs: Any
    ) -> Any:
        if self._has_positions:
            inputs["position_ids"] = positions
        inputs = self.model.prepare_inputs_for_generation(
            ids, past_key_values=cache, use_cache=True, is_first_iteration=is_first, **inputs
        )
        if self._keeps_logits:
            inputs["logits_to_keep"] = num_logits
        return self.model(**inputs, return_dict=True)

    def _to_device(self, value: Tensor) -> Tensor:
        dtype = self.model.dtype if value.is_floating_point() else value.dtype
        return value.to(self.device, dtype)
