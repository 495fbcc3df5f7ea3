"""LangChain's agents, and its standard tests for three chat models and for embeddings."""

from __future__ import annotations

import subprocess
import sys
from typing import Any, Literal

from langchain.agents import create_agent
from langchain.agents.structured_output import ProviderStrategy, ToolStrategy
from langchain_anthropic import ChatAnthropic
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel
from scene import BASE64, COLOR, MODEL, NO_IMAGE, QUESTION, Sentence

IMAGE: Any = {"type": "image", "base64": BASE64, "mime_type": "image/png"}
USER = HumanMessage([IMAGE, {"type": "text", "text": QUESTION}])
SETTINGS: Any = {"model": MODEL, "temperature": 0, "max_tokens": 200, "max_retries": 0}


class Heart(BaseModel, extra="forbid"):
    sentence: Sentence


@tool
def _shapes(kind: Literal["round", "square"]) -> str:
    """Return the shapes in the image."""
    return "circle"


def _models() -> list[BaseChatModel]:
    return [ChatOpenAI(**SETTINGS), ChatOpenAI(**SETTINGS, use_responses_api=True), ChatAnthropic(**SETTINGS)]


def image_input() -> None:
    for model in _models():
        assert COLOR in model.invoke([USER]).text


def streaming() -> None:
    for model in _models():
        chunks = [chunk.text for chunk in model.stream([USER])]
        assert len(chunks) > 2 and COLOR in "".join(chunks)


def tool_loop() -> None:
    for model in _models():
        call = model.bind_tools([_shapes], tool_choice="any").invoke([USER])
        [tool_call] = call.tool_calls[:1]
        history = [USER, AIMessage("", tool_calls=[tool_call]), _shapes.invoke(tool_call)]
        none: Any = {"type": "none"} if isinstance(model, ChatAnthropic) else "none"
        assert model.bind_tools([_shapes], tool_choice=none).invoke(history).text


def typed_output() -> None:
    for model in _models():
        assert isinstance(model.with_structured_output(Heart).invoke([USER]), Heart)


def typed_output_with_tools() -> None:
    for model in _models():
        for strategy in (ProviderStrategy(Heart), ToolStrategy(Heart)):
            agent = create_agent(model, tools=[_shapes], response_format=strategy)
            result = agent.invoke({"messages": [USER]}, {"recursion_limit": 8})
            assert isinstance(result["structured_response"], Heart)


def image_from_tool() -> None:
    call = {"name": "screenshot", "args": {}, "id": "call1"}
    history = [
        HumanMessage(QUESTION),
        AIMessage("", tool_calls=[call]),
        ToolMessage([IMAGE], tool_call_id="call1"),
    ]
    for model in _models():
        assert NO_IMAGE not in (model.invoke(history).text or NO_IMAGE)


def embeddings() -> None:
    model = OpenAIEmbeddings(model=MODEL, check_embedding_ctx_length=False)
    assert len(model.embed_documents(["a red circle", "two stars"])) == 2
    _standard_tests("TestEmbeddings")


def standard_tests_of_chat_completions() -> None:
    _standard_tests("TestChatOpenAI and not TestChatOpenAIWithResponses")


def standard_tests_of_responses() -> None:
    _standard_tests("TestChatOpenAIWithResponses")


def standard_tests_of_anthropic() -> None:
    _standard_tests("TestChatAnthropic")


def _standard_tests(selection: str) -> None:
    """Run the selected tests in a new process, because LangChain shares clients between event loops."""
    arguments = ["-c", "pytest.ini", "--confcutdir", ".", "-p", "expected_failures", "-k", selection]
    command = [sys.executable, "-m", "pytest", *arguments, "standard_tests.py"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
