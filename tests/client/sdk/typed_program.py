"""A program that uses the SDK. It is type-checked outside the repository and never run."""

from __future__ import annotations

from collections.abc import Sequence

from llava_client import (
    Answer,
    APIError,
    AsyncClient,
    AsyncStream,
    Batch,
    BatchResult,
    ChatOptions,
    Client,
    Conversation,
    Embeddings,
    RateLimitError,
    RetryPolicy,
    Stream,
    TokenLogprob,
    Usage,
    batch_request,
    user_message,
)


def describe(client: Client, image: bytes) -> str:
    options: ChatOptions = {"max_tokens": 64, "temperature": 0.0, "logprobs": True}
    answer: Answer = client.chat("What is this?", image=image, **options)
    usage: Usage | None = answer.usage
    scores: Sequence[TokenLogprob] = answer.choices[0].logprobs or ()
    return f"{answer.text} {usage.total_tokens if usage else 0} {sum(score.logprob for score in scores)}"


def stream(client: Client) -> str:
    stream: Stream
    with client.stream("Hello?") as stream:
        deltas: list[str] = list(stream)
    finish_reason: str | None = stream.finish_reason
    return "".join(deltas) + (finish_reason or "")


def converse(client: Client) -> list[str]:
    conversation: Conversation = client.conversation(image="photo.png", system="Be brief.")
    return [conversation.ask("What is this?").text, str(conversation.messages)]


def batch(client: Client) -> list[BatchResult]:
    submitted: Batch = client.submit_batch([batch_request("a", "Hello?")], metadata={"run": "1"})
    return list(client.batch_results(submitted.id))


def embed(client: Client) -> tuple[float, ...]:
    embeddings: Embeddings = client.embed(["a", "b"])
    return embeddings.vectors[0]


def retry_after(error: APIError) -> float | None:
    return error.retry_after_s if isinstance(error, RateLimitError) else None


def misuse(client: Client) -> None:
    """A function in which a type checker must reject every line."""
    client.chat("Hello?", max_tokens="9")  # type: ignore[arg-type]
    client.chat("Hello?", maximum=9)  # type: ignore[call-arg]
    client.chat("Hello?").words  # type: ignore[attr-defined] # noqa: B018


async def main() -> int:
    async with AsyncClient(retry_policy=RetryPolicy(initial_delay_s=1.0), timeout=30.0) as client:
        answer: Answer = await client.chat(messages=[user_message("Hello?", image="photo.png")])
        stream: AsyncStream = await client.stream("Hello?")
        async with stream:
            texts: list[str] = [delta async for delta in stream]
        async for state in client.follow_batch("batch_1"):
            status: str = state.status
            texts.append(status)
    return len(texts) + len(answer.text)
