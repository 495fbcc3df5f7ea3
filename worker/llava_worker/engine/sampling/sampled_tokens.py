"""The sampled tokens of a step, copied from the device to the host in one small transfer."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Items

from llava_wire.messages.event import ErrorCode, JobError
from torch import Tensor

from llava_worker.engine.core.model_runner_output import ChunkResult, TokenResult
from llava_worker.engine.core.outputs import TokenLogprobs
from llava_worker.engine.core.scheduler import Chunk
from llava_worker.engine.sampling.logprobs import PickedLogprobs
from llava_worker.model.device_copy import HostCopy

__all__ = ["SampledTokens", "count_accepted"]

_NO_TOKEN = -1  # marks invalid rows
_NO_CHOICE = -2  # marks rows in which every token is excluded


class SampledTokens:
    """The sampled tokens of a step.

    ``token_ids`` is int64 [rows]. Even in invalid rows, it contains IDs that are in the vocabulary, so that
    the next step can be launched before ``results`` reports which rows are valid.
    """

    def __init__(
        self,
        chunks: list[Chunk],
        token_ids: Tensor,
        *,
        is_valid: Tensor,
        has_choice: Tensor | None,
        logprobs: PickedLogprobs | None,
        errors: Mapping[int, JobError],
        vectors: Mapping[int, bytes | None],
    ) -> None:
        """Start copying the tokens to the host.

        Each chunk has one row for its last token and one for each draft. ``is_valid`` is bool [rows].
        ``has_choice`` is bool [rows], or None if every row has a token that can be sampled. ``errors`` (for
        failed grammars) and ``vectors`` (for embeddings) are keyed by row.
        """
        self.token_ids = token_ids
        self._chunks = chunks
        self._logprobs = logprobs
        self._errors = errors
        self._vectors = vectors
        tokens = token_ids if has_choice is None else token_ids.where(has_choice, _NO_CHOICE)
        tokens = tokens.where(is_valid, _NO_TOKEN)
        self._download = HostCopy([tokens, *([] if logprobs is None else logprobs.tensors)])

    def results(self) -> list[ChunkResult]:
        """Wait for the device and return one result per chunk."""
        token_ids, *logprobs = self._download.wait()
        by_row = {} if self._logprobs is None else self._logprobs.by_row(*logprobs)
        ids: list[int] = token_ids.tolist()
        has_only_tokens = not (by_row or self._errors or self._vectors)
        results, row = [], 0  # the first row of each chunk
        for chunk in self._chunks:
            if has_only_tokens and not chunk.drafts and ids[row] >= 0:  # most rows of a large batch
                results.append(ChunkResult(chunk, [TokenResult(ids[row])]))
            else:
                rows = range(row, row + chunk.num_sampled)
                results.append(self._result(chunk, [(each, ids[each], by_row.get(each)) for each in rows]))
            row += 1 + len(chunk.drafts)
        return results

    def _result(self, chunk: Chunk, rows: list[tuple[int, int, TokenLogprobs | None]]) -> ChunkResult:
        """Return the result of a chunk. Each of its rows consists of (row, token ID, log-probabilities)."""
        error = self._error(chunk, *rows[0][:2])
        if error is not None:
            return ChunkResult(chunk, [], error)
        tokens = [self._token(*row) for row in rows]
        num_accepted = count_accepted(chunk.drafts, [token.token_id for token in tokens])
        return ChunkResult(chunk, tokens[: num_accepted + 1])

    def _error(self, chunk: Chunk, row: int, token_id: int) -> JobError | None:
        """Return the error that ends the chunk's sequence. ``row`` is its first row.

        Only the first row can have an error, because a sequence has no drafts if its previous tokens
        determine which tokens are excluded.
        """
        if token_id == _NO_CHOICE:
            return _no_choice_error(len(chunk.sequence.output_ids))
        return self._errors.get(row)

    def _token(self, row: int, token_id: int, logprobs: TokenLogprobs | None) -> TokenResult:
        vector = self._vectors.get(row, b"")
        is_valid = token_id != _NO_TOKEN and vector is not None
        return TokenResult(token_id if is_valid else None, logprobs, vector or b"")


def _no_choice_error(num_output_tokens: int) -> JobError:
    message = (
        f"No token can be sampled after {num_output_tokens} output tokens, because allowed_token_ids, "
        "bad_words, min_tokens and the output format together exclude all tokens. Allow more tokens."
    )
    return JobError(ErrorCode.INVALID_REQUEST, message)


def count_accepted(drafts: Items[int], sampled: Items[int | None]) -> int:
    """Return the number of accepted drafts.

    A draft is accepted if it and all drafts before it equal the sampled tokens. ``sampled[i]`` is the token
    sampled after ``drafts[:i]``, or None if no valid token could be sampled. ``sampled`` has one more entry
    than ``drafts``. The new output tokens are ``sampled[: count_accepted(...) + 1]``.
    """
    pairs = zip(drafts, sampled, strict=False)
    return next((index for index, (draft, token_id) in enumerate(pairs) if draft != token_id), len(drafts))
