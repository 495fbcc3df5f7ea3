"""LangChain's standard tests for chat models and embeddings, with the server behind its own integrations."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from langchain_anthropic import ChatAnthropic
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from langchain_tests.integration_tests import ChatModelIntegrationTests, EmbeddingsIntegrationTests
from scene import END_JSON, IMAGE, MODEL


@pytest.fixture(autouse=True)
def image_download(monkeypatch: pytest.MonkeyPatch) -> None:
    """The standard tests download images. Return the project's image instead."""

    def get(url: str, **options: Any) -> httpx.Response:
        return httpx.Response(200, content=IMAGE.read_bytes(), request=httpx.Request("GET", url))

    monkeypatch.setattr(httpx, "get", get)


class VisionModel(ChatModelIntegrationTests):
    """The features of the bundled model that the standard tests can check."""

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {
            "model": MODEL,
            "temperature": 0,
            "max_retries": 0,
            "max_tokens": 200,
            "timeout": 60,
            "stream_usage": True,
        }

    @property
    def supports_image_inputs(self) -> bool:
        return True

    @property
    def supports_image_tool_message(self) -> bool:
        return True

    @property
    def supports_anthropic_inputs(self) -> bool:
        return True

    @property
    def supports_json_mode(self) -> bool:
        return True


class TestChatOpenAI(VisionModel):
    @property
    def chat_model_class(self) -> type[ChatOpenAI]:
        return ChatOpenAI

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {**super().chat_model_params, "logit_bias": END_JSON}


class TestChatOpenAIWithResponses(VisionModel):
    @property
    def chat_model_class(self) -> type[ChatOpenAI]:
        return ChatOpenAI

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {
            **super().chat_model_params,
            "use_responses_api": True,
            "extra_body": {"logit_bias": END_JSON},
        }


class TestChatAnthropic(VisionModel):
    @property
    def chat_model_class(self) -> type[ChatAnthropic]:
        return ChatAnthropic

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {**super().chat_model_params, "model_kwargs": {"extra_body": {"logit_bias": END_JSON}}}


class TestEmbeddings(EmbeddingsIntegrationTests):
    @property
    def embeddings_class(self) -> type[OpenAIEmbeddings]:
        return OpenAIEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return {"model": MODEL, "check_embedding_ctx_length": False}
