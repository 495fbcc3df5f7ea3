"""Templates that never end or use all memory cause an error, and the next request is rendered."""

from __future__ import annotations

from typing import Any

import pytest
from llava_wire.messages.event import ErrorCode
from llava_worker.language.template_process import RenderingError, TemplateProcess

MESSAGES: list[dict[str, Any]] = [{"role": "user", "content": "Hi?"}]
LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
TIME = "takes longer than 2 seconds to render. Shorten the messages, or simplify the template."
MEMORY = "needs more than 512 MiB of memory to render. Shorten the messages, or simplify the template."
RUNAWAY = {
    "nested loops": (LOOP, TIME),
    "text from a small literal": ("{{ 'a' * 10 ** 10 }}", MEMORY),
    "text of a large join": ("{{ (['aaaaaaaa'] * 10 ** 8) | join('b' * 1000) }}", MEMORY),
    "doubled text": (
        "{% set n = namespace(t='a') %}{% for a in range(99) %}{% set n.t = n.t + n.t %}{% endfor %}",
        MEMORY,
    ),
    "wide format": ("{{ '%0999999999d' % 3 }}", MEMORY),
    "recursive macro": (
        "{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}",
        "maximum recursion depth exceeded",
    ),
    "large range": ("{% for a in range(10 ** 9) %}{% endfor %}", "Range too big"),
    "long text": (
        "{{ 'a' * 10 ** 7 }}",
        "expands messages of 3 characters to 10000000; the limit is 1048588. Simplify the template.",
    ),
}


def render(process: TemplateProcess, source: str, **variables: str) -> str:
    return process.render(source, MESSAGES, variables=variables, is_continued=False)


@pytest.mark.parametrize("name", RUNAWAY)
def test_runaway_template_ends_in_an_error(template_process: TemplateProcess, name: str) -> None:
    source, error = RUNAWAY[name]
    with pytest.raises(RenderingError) as raised:
        render(template_process, source)
    assert error in str(raised.value)
    assert raised.value.code is ErrorCode.INVALID_REQUEST
    assert render(template_process, "{{ messages[0].content }}") == "Hi?"


def test_constant_expression_that_never_ends_fails_when_the_template_is_compiled(
    template_process: TemplateProcess,
) -> None:
    with pytest.raises(RenderingError, match="takes longer than 2 seconds"):
        template_process.compile("{{ 7 ** (7 ** (7 ** 9)) }}")


def test_long_messages_can_be_repeated(template_process: TemplateProcess) -> None:
    messages = [{"role": "user", "content": [{"type": "text", "text": "é" * 10**6}]}]
    source = "{% for part in messages[0].content %}{{ part.text + part.text }}{% endfor %}"
    text = template_process.render(source, messages, variables={}, is_continued=False)
    assert text == "é" * 2 * 10**6


def test_long_error_message_is_shortened(template_process: TemplateProcess) -> None:
    with pytest.raises(RenderingError) as raised:
        render(template_process, "{{ raise_exception('x' * 10 ** 6) }}")
    assert len(str(raised.value)) < 600


def test_variables_that_are_not_set_are_undefined(template_process: TemplateProcess) -> None:
    source = "{{ bos_token is defined }} {{ eos_token is defined }}{{ eos_token }}"
    assert render(template_process, source, bos_token="<s>") == "True False"


@pytest.mark.parametrize("source", [r"{{ '\ud800' }}", r"{{ '\ud83d\ude00' }}"])
def test_half_characters_in_the_rendered_text_are_an_error(
    template_process: TemplateProcess, source: str
) -> None:
    with pytest.raises(RenderingError, match="inserts a surrogate"):
        render(template_process, source)


def test_half_characters_in_an_error_message_are_replaced(template_process: TemplateProcess) -> None:
    with pytest.raises(RenderingError, match="rejected the messages: a\N{REPLACEMENT CHARACTER}b"):
        render(template_process, r"{{ raise_exception('a\ud800b') }}")


NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('No system message.') }}{% endif %}"
    "{% for message in messages %}{% if message.content is string %}{{ message.content }}|"
    "{% else %}{% for part in message.content %}{{ part.text or '#' }}{% endfor %}|{% endif %}{% endfor %}"
)


def test_a_system_message_that_the_template_rejects_is_rendered_in_the_first_user_message(
    template_process: TemplateProcess,
) -> None:
    def text(*contents: Any) -> str:
        roles = ("system", "user", "assistant", "user")
        messages = [{"role": role, "content": each} for role, each in zip(roles, contents, strict=False)]
        return template_process.render(NO_SYSTEM, messages, variables={}, is_continued=False)

    parts = [{"type": "image"}, {"type": "text", "text": "Hi?"}]
    assert text("Be brief.", "Hi?", "Yes.", "Why?") == "Be brief.\n\nHi?|Yes.|Why?|"
    assert text([{"type": "text", "text": "Be brief."}], parts) == "Be brief.\n\n#Hi?|"


def test_if_the_template_also_rejects_the_user_message_the_error_is_that_of_the_system_message(
    template_process: TemplateProcess,
) -> None:
    source = NO_SYSTEM + "{{ raise_exception('No message.') }}"
    messages = [{"role": "system", "content": "Be brief."}, *MESSAGES]
    with pytest.raises(RenderingError, match="No system message"):
        template_process.render(source, messages, variables={}, is_continued=False)
