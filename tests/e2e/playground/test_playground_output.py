"""How responses are displayed: Markdown, probabilities, JSON, measurements and comparisons of two models."""

from __future__ import annotations

import json
import re

import pytest
from playwright.sync_api import Page, Request, expect

from tests.e2e.playground.page_actions import ask, copied, drop_image, finished, response_text, scripted, sent
from tests.machine_speed import scaled
from tests.processes import ControllerProcess

pytestmark = [pytest.mark.e2e, pytest.mark.browser, pytest.mark.timeout(300)]

CHAT = "**/v1/chat/completions"
MARKDOWN = """# Shapes & <b>colors</b>

A **red** circle, an *orange* star and `x < 1`, see [the docs](https://example.com/a_b) or https://example.com/c.
A second line with snake_case_name, 2 * 3 * 4 and \\*stars\\*.

1. one
   - nested ~~wrong~~
2. two

> quoted **text**

| shape | color |
|---|:---:|
| star | `red` |

```python
print("<script>")

x = 1
```
"""
# Markdown that must not create a link, an image, a script or an event handler.
HOSTILE = """[a](javascript:alert(1)) [b](data:text/html,<script>alert(1)</script>) [c](vbscript:x)
[d](//evil.test/x) ![i](javascript:alert(1)) <a href="javascript:alert(1)">e</a>
[f]( javascript:alert(1)) [g](JaVaScRiPt:alert(1)) <svg onload=window.pwned=1>
<iframe srcdoc="<script>parent.pwned=1</script>"></iframe> `<img src=x onerror=alert(1)>`

```"><img src=x onerror=window.pwned=1>
<script>window.pwned=1</script>
```

| <img src=x onerror=window.pwned=1> |
|---|
| [x](javascript:alert(1)) |
"""
# Inputs for which careless parsers take quadratic time or overflow the stack.
PATHOLOGICAL = [
    *("*a " * 20_000, "**a" * 20_000, "_" * 40_000, "`" * 20_001 + "a", "[" * 40_000, "[a](" * 10_000),
    *(
        "> " * 5_000,
        "- " * 10_000,
        "".join(f"{' ' * i}- a\n" for i in range(300)),
        "|" * 30_000 + "\n" + "|-" * 15_000,
    ),
    *("`a``" * 10_000, "![" * 20_000, "https://" * 5_000, "#" * 30_000, "~~a " * 10_000, "\\" * 30_001),
    *("http://%" * 20_000, "`" * 3 + "a" * 300_000 + "`", "~" * 300_000 + "`", "[" * 300_000 + "]("),
]
SCHEMA = {
    "type": "object",
    "properties": {"color": {"enum": ["red", "green"]}, "count": {"type": "integer", "maximum": 9}},
    "required": ["color", "count"],
    "additionalProperties": False,
}


@pytest.fixture
def playground(page: Page, two_models: ControllerProcess) -> Page:
    page.add_init_script("sessionStorage['llava.max-tokens'] ??= '40'")
    page.goto(two_models.url)
    return page


def select_model(page: Page, name: str) -> None:
    expect(page.get_by_label("Model")).to_be_enabled()
    page.get_by_label("Model").select_option(name)


def write(page: Page, schema: object) -> None:
    page.get_by_label("Output format").select_option("JSON schema")
    page.get_by_label("JSON schema of the response").fill(
        schema if isinstance(schema, str) else json.dumps(schema)
    )


def test_markdown_is_rendered_and_copied_unchanged(playground: Page) -> None:
    scripted(playground, *re.findall(r".{1,7}", MARKDOWN, re.DOTALL))  # as streamed
    ask(playground, "Hello?")
    finished(playground)
    shown = response_text(playground)
    expect(shown.get_by_role("heading")).to_have_text("Shapes & <b>colors</b>")
    assert shown.locator("p strong, p em, p > code").all_text_contents() == ["red", "orange", "x < 1", "text"]
    links = [link.get_attribute("href") for link in shown.get_by_role("link").all()]
    assert links == ["https://example.com/a_b", "https://example.com/c"]
    assert shown.get_by_role("link").first.get_attribute("rel") == "noopener noreferrer"
    expect(shown.locator("p").first).to_contain_text("snake_case_name, 2 * 3 * 4 and *stars*.")
    expect(shown.locator("ol > li")).to_have_count(2)
    expect(shown.locator("ol ul del")).to_have_text("wrong")
    expect(shown.locator("blockquote")).to_have_text("quoted text")
    expect(shown.locator("td")).to_have_text(["star", "red"])
    expect(shown.locator("pre")).to_have_text('print("<script>")\n\nx = 1')
    assert copied(playground, "Copy response") == MARKDOWN
    playground.get_by_role("button", name="Copy code").click()
    expect(playground.get_by_role("button", name="Copied")).to_be_visible()
    assert playground.evaluate("navigator.clipboard.readText()") == 'print("<script>")\n\nx = 1'


def test_hostile_markdown_creates_no_active_content(playground: Page) -> None:
    scripted(playground, *re.findall(r".{1,9}", HOSTILE, re.DOTALL))
    ask(playground, "Be evil.")
    finished(playground)
    shown = response_text(playground)
    expect(shown.locator("a, img, svg, iframe, script, object, form, input")).to_have_count(0)
    tags = set(shown.locator("*").evaluate_all("nodes => nodes.map((node) => node.tagName)"))
    assert tags <= {
        "DIV",
        "P",
        "BR",
        "CODE",
        "PRE",
        "SPAN",
        "BUTTON",
        "TABLE",
        "THEAD",
        "TBODY",
        "TR",
        "TH",
        "TD",
    }
    names = set(shown.locator("*").evaluate_all("nodes => nodes.flatMap((node) => node.getAttributeNames())"))
    assert names <= {"class", "type", "tabindex", "role", "aria-label"}
    assert playground.evaluate("window.pwned") is None


def test_pathological_markdown_is_rendered(playground: Page) -> None:
    """Quadratic algorithms would exceed the timeout."""
    numbers = playground.evaluate(
        """async (texts) => {
            const { renderMarkdown } = await import("/playground/markdown.js");
            return texts.map((text) => {
                const target = document.createElement("div");
                renderMarkdown(target, text);
                return target.textContent.length;
            });
        }""",
        PATHOLOGICAL,
    )
    assert len(numbers) == len(PATHOLOGICAL)


def test_token_probabilities_are_shown_on_hover_and_with_the_keyboard(playground: Page) -> None:
    select_model(playground, "tiny-llava")
    playground.get_by_role("button", name="Settings").click()
    playground.get_by_label("Request token probabilities").check()
    playground.keyboard.press("Escape")
    playground.get_by_role("button", name="the word MUSIC").click()
    expect(playground.get_by_label("Images to send").get_by_role("img")).to_have_count(1)
    with playground.expect_request(CHAT) as request:
        ask(playground, "What color is the circle?")
    assert (sent(request.value)["logprobs"], sent(request.value)["top_logprobs"]) == (True, 5)
    text = finished(playground)
    toggle = playground.get_by_role("button", name="Token probabilities")
    toggle.click()
    tokens = playground.locator(".token")
    assert "".join(tokens.all_text_contents()) == text
    tokens.first.hover()
    tip = playground.get_by_role("tooltip")
    expect(tip.locator("span")).to_have_count(5)
    expect(tip.locator(".is-sampled")).to_have_text(re.compile(r'^".*" \d+\.\d %$'))
    tokens.first.focus()
    playground.keyboard.press("ArrowRight")
    expect(tokens.nth(1)).to_be_focused()
    expect(tip.locator(".is-sampled")).to_contain_text(json.dumps(tokens.nth(1).text_content()))
    playground.keyboard.press("Escape")
    expect(tip).to_be_hidden()
    toggle.click()
    expect(tokens).to_have_count(0)
    assert finished(playground) == text


def test_output_formats_add_the_instructions_of_the_paper(playground: Page) -> None:
    select_model(playground, "echo")
    for label, instruction in (
        ("Word or phrase", "Answer the question using a single word or phrase."),
        ("Letter of an option", "Answer with the option's letter from the given choices directly."),
        ("One-sentence caption", "Provide a one-sentence caption for the provided image."),
    ):
        playground.get_by_label("Output format").select_option(label)
        with playground.expect_request(CHAT) as request:
            ask(playground, "What is this?")
        assert sent(request.value)["messages"][-1]["content"] == f"What is this?\n{instruction}"
        finished(playground)
        expect(playground.locator(".question-format").last).to_have_text(label)


def test_the_instructions_are_those_of_the_client() -> None:
    from importlib.resources import files

    from llava_client.answer_formats import FORMATS

    source = (files("llava_server") / "playground" / "output_format.js").read_text()
    shown = dict(re.findall(r'(\w+): \{\s+label: [^}]+instruction: "(.+)"', source))
    assert shown == {name: FORMATS[name] for name in ("short", "option", "caption", "region", "box")}


def test_a_response_in_a_json_schema_is_shown_as_valid(playground: Page) -> None:
    select_model(playground, "tiny-llava")
    write(playground, SCHEMA)
    drop_image(playground)
    with playground.expect_request(CHAT) as request:
        ask(playground, "What color is it?")
    assert sent(request.value)["response_format"]["json_schema"]["schema"] == SCHEMA
    value = json.loads(finished(playground).removeprefix("json").removeprefix("Copy code"))
    assert value["color"] in ("red", "green")
    expect(playground.locator(".validation")).to_have_text("Valid: conforms to the schema")


def test_violations_and_truncated_json_are_shown(playground: Page) -> None:
    write(playground, SCHEMA)
    scripted(playground, '{"color": "blue", "count": 12, ', '"size": 1}')
    ask(playground, "Hello?")
    finished(playground)
    expect(playground.locator(".validation")).to_have_text(
        '$.color must be one of "red", "green". $.count must be at most 9, but is 12. $.size is not allowed.'
    )
    playground.unroute(CHAT)
    scripted(playground, '{"color": "re')
    ask(playground, "Hello?")
    finished(playground)
    expect(playground.locator(".validation").last).to_have_text("The response is not complete JSON.")


def test_an_invalid_schema_is_reported_before_the_request(playground: Page) -> None:
    select_model(playground, "tiny-llava")
    write(playground, '{"type": ')
    expect(playground.locator("#schema-state")).to_contain_text("This is not valid JSON")
    ask(playground, "Hello?")
    expect(playground.locator("#notice")).to_contain_text("The JSON schema is invalid.")
    expect(playground.get_by_label("Your question")).to_have_value("Hello?")
    write(playground, {"type": "object", "properties": {"a": {"type": "string", "pattern": "("}}})
    playground.get_by_role("button", name="Indent").click()
    expect(playground.get_by_label("JSON schema of the response")).to_have_value(re.compile(r'^\{\n  "type"'))
    ask(playground, "Hello?")
    expect(playground.locator(".failure")).to_contain_text("pattern")  # the server's error


SCHEMA_CASES = [
    ({"type": ["string", "null"]}, None, True),
    ({"type": "number"}, 1, True),
    ({"type": "integer"}, 1.5, False),
    ({"const": {"a": [1]}}, {"a": [1]}, True),
    ({"const": {"a": [1]}}, {"a": [2]}, False),
    ({"anyOf": [{"type": "string"}, {"minimum": 3}]}, 2, False),
    ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, 2, False),
    ({"not": {"type": "string"}}, "x", False),
    ({"allOf": [{"minimum": 1}, {"exclusiveMaximum": 2}]}, 2, False),
    ({"prefixItems": [{"type": "string"}], "items": False}, ["a", 1], False),
    ({"items": {"$ref": "#/$defs/n"}, "$defs": {"n": {"multipleOf": 5}}}, [5, 10], True),
    ({"items": {"$ref": "#/$defs/n"}, "$defs": {"n": {"multipleOf": 5}}}, [5, 11], False),
    ({"additionalProperties": {"type": "string"}}, {"a": 1}, False),
    ({"required": ["constructor"]}, {}, False),
    ({"minLength": 2, "maxLength": 2}, "😀😀", True),
    ({"maxItems": 1}, [1, 2], False),
    ({"anyOf": [{"$ref": "#"}, {"$ref": "#"}], "$ref": "https://evil.test/x"}, 1, False),  # too complex
    ({"properties": 5, "required": "x", "anyOf": {}, "enum": 1}, {"a": 1}, True),  # not a schema
]


def test_schemas_are_checked_like_the_server_does(playground: Page) -> None:
    results = playground.evaluate(
        """async (cases) => {
            const { violations } = await import("/playground/json_schema.js");
            return cases.map(([schema, value]) => violations(value, schema).length === 0);
        }""",
        [[schema, value] for schema, value, _ in SCHEMA_CASES],
    )
    assert results == [is_valid for _, _, is_valid in SCHEMA_CASES]


def test_queue_and_cache_measurements_of_a_response_are_shown(playground: Page) -> None:
    select_model(playground, "tiny-llava")
    for _ in range(2):
        playground.get_by_role("button", name="New chat").click()
        playground.get_by_role("button", name="the word MUSIC").click()
        expect(playground.get_by_label("Images to send").get_by_role("img")).to_have_count(1)
        ask(playground, "Describe the picture in one sentence.")
        finished(playground)
    playground.get_by_text("Details").click()
    rows = playground.locator(".measurements")
    for pattern in (
        r"Queue\d+ requests? (was|were) ahead",
        r"First tokenafter \d",
        r"Prefix cache[1-9]\d* tokens reused \(\d+ %\)",
        r"Modeltiny-llava \(fp_",
    ):
        expect(rows).to_contain_text(re.compile(pattern))
    playground.reload()
    expect(playground.locator(".measurements dl")).to_be_visible()  # remains open


def test_the_load_of_the_server_is_shown_while_a_response_waits(playground: Page) -> None:
    playground.route(CHAT, lambda route: None)  # no response
    ask(playground, "Hello?")
    expect(playground.locator(".facts")).to_have_text(
        "waiting for the first token · 0 responses are in progress on this server"
    )
    playground.get_by_role("button", name="Stop").click()
    expect(playground.locator(".facts")).to_have_text("stopped")


def test_two_models_are_compared_side_by_side(playground: Page) -> None:
    select_model(playground, "tiny-llava")
    playground.get_by_role("button", name="Settings").click()
    playground.get_by_label("Compare with").select_option("echo")
    playground.keyboard.press("Escape")
    ask(playground, "What can you do?")
    models = playground.locator(".turn").last.locator(".response-model")
    expect(models).to_have_text(["tiny-llava", "echo"])
    both = playground.get_by_role("button", name="Copy as curl")
    expect(both).to_have_count(2, timeout=scaled(60_000))
    texts = playground.locator(".response-text")
    assert texts.nth(0).text_content() != texts.nth(1).text_content()
    boxes = [playground.locator(".response").nth(index).bounding_box() for index in range(2)]
    assert boxes[0] and boxes[1] and boxes[0]["x"] + boxes[0]["width"] <= boxes[1]["x"]

    requests: list[Request] = []
    playground.on("request", lambda request: requests.append(request))
    ask(playground, "And now?")
    expect(both).to_have_count(4, timeout=scaled(60_000))
    bodies = [sent(request) for request in requests if request.url.endswith("/chat/completions")]
    earlier = {body["model"]: body["messages"][1]["content"] for body in bodies}
    assert earlier == {
        "tiny-llava": texts.nth(0).text_content(),
        "echo": texts.nth(1).text_content(),
    }


def test_a_failed_response_of_a_comparison_is_retried_alone(playground: Page) -> None:
    select_model(playground, "tiny-llava")
    playground.get_by_role("button", name="Settings").click()
    playground.get_by_label("Compare with").select_option("echo")
    playground.keyboard.press("Escape")
    playground.route(
        CHAT,
        lambda route: (
            route.abort("connectionrefused") if sent(route.request)["model"] == "echo" else route.continue_()
        ),
    )
    ask(playground, "Hello?")
    retry = playground.get_by_role("button", name="Try again")
    expect(retry).to_be_visible()
    expect(playground.get_by_role("button", name="Copy as curl")).to_have_count(2, timeout=scaled(60_000))
    first = playground.locator(".response-text").first.text_content()
    playground.unroute(CHAT)
    retry.click()
    expect(playground.locator(".response-text").nth(1)).to_have_text(re.compile(r"\w"))
    expect(playground.get_by_role("button", name="Copy as curl")).to_have_count(2, timeout=scaled(60_000))
    assert playground.locator(".response-text").first.text_content() == first
    expect(playground.locator(".failure")).to_have_count(0)


def test_a_table_has_no_more_cells_than_its_text(playground: Page) -> None:
    """Otherwise, a table with n columns and n rows of 1 cell has n * n cells."""
    table = "|" + "a|" * 1_500 + "\n|" + "-|" * 1_500 + "\n" + "|a\n" * 1_500
    num_cells = playground.evaluate(
        """async (text) => {
            const { renderMarkdown } = await import("/playground/markdown.js");
            const target = document.createElement("div");
            renderMarkdown(target, text);
            return target.querySelectorAll("th, td").length;
        }""",
        table,
    )
    assert num_cells == 3_000


def test_the_bundled_model_completes_the_example_schema(page: Page, two_models: ControllerProcess) -> None:
    page.goto(two_models.url)
    select_model(page, "tiny-llava")
    page.get_by_label("Output format").select_option("JSON schema")
    page.get_by_role("button", name="the word MUSIC").click()
    expect(page.get_by_label("Images to send").get_by_role("img")).to_have_count(1)
    ask(page, "Describe the picture in one sentence.")
    finished(page)
    expect(page.locator(".validation")).to_have_text("Valid: conforms to the schema")
