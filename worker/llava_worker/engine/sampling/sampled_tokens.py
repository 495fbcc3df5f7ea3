"""The sampled tokens of a step: chosen on the device, copied to the host in one small copy."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Items
from itertools import islice

from llava_wire.messages.event import JobError
from torch import Tensor

from llava_worker.engine.core.outputs import TokenLogprobs
from llava_worker.engine.core.scheduler import Chunk
from llava_worker.engine.core.step_result import ChunkResult, TokenResult
from llava_worker.engine.sampling.logprobs import PickedLogprobs
from llava_worker.model.device_copy import HostCopy

__all__ = ["SampledTokens", "count_accepted"]

_NO_TOKEN = -1  # in place of tokens of invalid rows


class SampledTokens:
    """``token_ids``, int64 [rows], are in the vocabulary for invalid rows too, so that the next step can be
    launched before ``results`` says which of them count."""

    def __init__(
        self,
        chunks: list[Chunk],
        token_ids: Tensor,
        *,
        is_valid: Tensor,
        logprobs: PickedLogprobs | None,
        errors: Mapping[int, JobError],
        vectors: Mapping[int, bytes | None],
    ) -> None:
        """A row for each chunk's last token and each of its drafts; ``is_valid``, bool [rows]. ``errors`` of
        grammars and ``vectors`` of embeddings are by row."""
        self.token_ids = token_ids
        self._chunks = chunks
        self._logprobs = logprobs
        self._errors = errors
        self._vectors = vectors
        tokens = token_ids.where(is_valid, _NO_TOKEN)
        self._download = HostCopy([tokens, *([] if logprobs is None else logprobs.tensors)])

    def results(self) -> list[ChunkResult]:
        """Wait for the device and return a result for each chunk."""
        token_ids, *logprobs = self._download.wait()
        by_row = {} if self._logprobs is None else self._logprobs.by_row(*logprobs)
        rows = iter(enumerate(token_ids.tolist()))
        results = []
        for chunk in self._chunks:
            own = list(islice(rows, chunk.num_sampled))
            first_row = own[0][0]
            if first_row in self._errors:  # a sequence with a grammar has no drafts
                results.append(ChunkResult(chunk, [], self._errors[first_row]))
                continue
            tokens = [self._token(row, token_id, by_row.get(row)) for row, token_id in own]
            num_accepted = count_accepted(chunk.drafts, [token.token_id for token in tokens])
            results.append(ChunkResult(chunk, tokens[: num_accepted + 1]))
        return results

    def _token(self, row: int, token_id: int, logprobs: TokenLogprobs | None) -> TokenResult:
        vector = self._vectors.get(row, b"")
        is_valid = token_id != _NO_TOKEN and vector is not None
        return TokenResult(token_id if is_valid else None, logprobs, vector or b"")


def count_accepted(drafts: Items[int], sampled: Items[int | None]) -> int:
    """The number of leading drafts that are accepted: those equal to the sampled tokens.

    ``sampled[i]`` is the token sampled after ``drafts[:i]``, one more than there are drafts; None is no
    token. So ``sampled[: count_accepted(...) + 1]`` are the tokens that the output gains.
    """
    pairs = zip(drafts, sampled, strict=False)
    return next((index for index, (draft, token_id) in enumerate(pairs) if draft != token_id), len(drafts))
