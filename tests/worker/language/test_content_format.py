"""Templates that loop over a message's content receive a list; others receive a string."""

from __future__ import annotations

import pytest
from jinja2 import Environment
from llava_worker.language.content_format import expects_list_content

LIST = {
    "item": "{% for m in messages %}{% for p in m['content'] %}{{ p.text }}{% endfor %}{% endfor %}",
    "attribute": "{% for m in messages %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endfor %}",
    "filter": "{% for p in messages[0].content | selectattr('type', 'equalto', 'text') %}{% endfor %}",
    "slice": "{% for p in messages[0].content[1:] %}{% endfor %}",
    "condition of the loop": "{% for p in messages[0].content if p.type == 'text' %}{% endfor %}",
    "default": "{% for p in messages[0].content or [] %}{% endfor %}",
    "inline if": "{% for p in (m.content if m.content is not string else []) %}{% endfor %}",
    "variables": "{% set a = m.content %}{% set b = a %}{% for p in b %}{% endfor %}",
    "macro": "{% macro f(x, y) %}{% for p in y %}{% endfor %}{% endmacro %}{{ f(1, m.content) }}",
    "macro with keywords": "{% macro f(x) %}{% for p in x %}{% endfor %}{% endmacro %}{{ f(x=m.content) }}",
    "string or list": "{% if m.content is string %}{% else %}{% for p in m.content %}{% endfor %}{% endif %}",
    "first part": "{{ messages[0].content[0].text }}",
    "type of the first part": "{% if messages[0]['content'][0]['type'] == 'image' %}{% endif %}",
}
STRING = {
    "output": "{% for m in messages %}{{ m['content'] + eos_token }}{% endfor %}",
    "no messages": "<image>",
    "lines": "{% for line in m.content.split('x') %}{{ line }}{% endfor %}",
    "other loops": "{% for call in m.tool_calls %}{{ call.text }}{% endfor %}{{ m.content }}",
    "first character": "{{ m.content[0] }}{{ m.content[:3] | upper }}",
    "other macro": "{% macro f(x) %}{% for p in x %}{% endfor %}{% endmacro %}{{ f(tools) }}{{ m.content }}",
    "other variable": "{% set a = m.content | length %}{% for p in b %}{{ a }}{% endfor %}",
}


@pytest.mark.parametrize("name", LIST)
def test_template_that_accesses_parts_expects_a_list(name: str) -> None:
    assert expects_list_content(Environment().parse(LIST[name]))


@pytest.mark.parametrize("name", STRING)
def test_other_templates_expect_a_string(name: str) -> None:
    assert not expects_list_content(Environment().parse(STRING[name]))
