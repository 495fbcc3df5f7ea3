"""Every template renders the conversations that the server builds from messages in any order."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from llava_wire.messages.job import Message
from llava_worker.language.conversation_templates import CONVERSATION_TEMPLATES
from llava_worker.language.prompt_formats import PromptTemplate, Segment, SpecialToken
from llava_worker.language.template_process import TemplateProcess

from tests.server.api.chat.random_messages import RandomMessages, random_messages
from tests.worker.language.test_published_templates import STYLES, Model

# A template of a model without a system prompt drops the system message.
DROPS_SYSTEM = {"paligemma"}


@pytest.fixture(scope="module")
def templates(
    tmp_path_factory: pytest.TempPathFactory, template_process: TemplateProcess
) -> dict[str, PromptTemplate]:
    models = {name: Model(name, Path(tmp_path_factory.mktemp(name)), template_process) for name in STYLES}
    return {**CONVERSATION_TEMPLATES, **{name: model.template for name, model in models.items()}}


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(random=random_messages())
def test_every_template_renders_all_texts_and_images_of_any_messages_in_order(
    templates: dict[str, PromptTemplate], random: RandomMessages
) -> None:
    conversation = random.conversation(tools="text99999")
    for name, template in templates.items():
        texts, images = rendered(template, conversation, is_continued=random.is_continued)
        seen = conversation[1:] if name in DROPS_SYSTEM else conversation
        assert texts == names(seen), name
        assert images == [name for name in random.names if name.startswith("image")], name


def rendered(
    template: PromptTemplate, conversation: Sequence[Message], *, is_continued: bool
) -> tuple[list[str], list[str]]:
    """Return the names of texts and of images in a prompt."""
    segments: list[Segment] = template.render(conversation, is_continued=is_continued)
    text = " ".join(segment for segment in segments if isinstance(segment, str))
    images = [s.digest for s in segments if not isinstance(s, (str, SpecialToken))]
    return re.findall(r"(?:text|call)\d+", text), images


def names(conversation: Sequence[Message]) -> list[str]:
    parts = [part for message in conversation for part in message.parts if isinstance(part, str)]
    return re.findall(r"(?:text|call)\d+", " ".join(parts))
