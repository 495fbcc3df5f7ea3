"""Texts and names use standard terms. docs/project/writing.md has the rules, this test the words to avoid."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BENCH_ENVIRONMENTS = ROOT / "bench" / "work"  # git-ignored: virtual environments of other servers

# Patterns for whole words (case-insensitive), and what to write instead.
WORDS = {
    r"pictures?": "image",
    r"answer(s|ed|ing)?": "response, output, completion",
    r"told|tells?|telling": "report, return, log, send",
    r"nobody|whoever|everybody|anybody": "no client, any client",
    r"(come|comes|ask|asks) again": "retry",
    r"beside": "next to, concurrently with",
    r"is over|are over": "has expired, has ended",
    r"known here": "recognized, supported",
    r"so (many|long|much|few)": "the number, or 'that many'",
    r"stands?|stood|standing": "is",
    r"hears?|heard|speaks?|spoken|spoke": "receive, use, support",
    r"dies|died|dying|born": "exit, crash, is created",
    r"given up|gave up": "declared lost, abandoned",
    r"guess(es|ed|ing)?": "draft, estimate",
    r"forgets?|forgot|forgotten": "drop, evict, release",
    r"twins?|guests?|wards?|seats?": "duplicate, overflow slot, quarantined request, slot",
    r"fitted": "resized, preprocessed",
    r"exams?": "evaluation",
    r"ways? out": "remedy",
    r"reckon(s|ed|ing)?": "accounting, estimate",
    r"(breaks?|broke|broken|breaking) off": "is interrupted",
    r"lets? go|letting go": "release",
    r"steering": "logits processors",
    r"go on|goes on|going on|went on|gone on": "continue",
    r"afresh|anew|hence|thereby|thereof|whereupon|thereupon|alike|apiece|for ever": "plain English",
    r"memory is (too )?short": "out of memory",
    r"thrown away|throws? away": "discard",
    r"hurr(y|ies|ied)": "plain English",
    r"ours": "this project's",
    r"comes? to": "is, totals",
    r"mends?|mended": "fix",
    r"taken? for": "mistaken for",
    r"looks? at (it|them) once|looked at once": "encoded once",
    r"wish(es|ed)?": "request",
    r"(tokens?|requests?|bytes|ms|seconds?|times|steps?|images?|GB|MB|MiB|KiB|GiB) an? "
    r"(second|minute|token|step|request|image|hour|day|row|line|file|layer|head|job|key)": "per",
}

# Paths in which some of these words are allowed.
IMAGE, ANSWER, TELL, STAND = "pictures?", "answer(s|ed|ing)?", "told|tells?|telling", "stands?|stood|standing"
WARD, FORGET, LET_GO, IS_OVER = (
    "twins?|guests?|wards?|seats?",
    "forgets?|forgot|forgotten",
    "lets? go|letting go",
    "is over|are over",
)
ALLOWED: dict[str, tuple[str, ...]] = {
    "docs/project/writing.md": tuple(WORDS),  # the guide and this test list the words
    "tests/test_writing.py": tuple(WORDS),
    # prompts, questions to models, and the answers to these questions
    "tools/tiny/*": (IMAGE, ANSWER, TELL, STAND),
    "tools/eval_tiny.py": (ANSWER,),
    "tools/prompt_goldens.py": (ANSWER,),
    "tools/playground_screenshot.py": (IMAGE,),
    "tests/tools/test_tiny_scenes.py": (IMAGE, ANSWER),
    "tests/worker/language/*": (IMAGE, ANSWER),
    "tests/worker/engine/quantization/*": (ANSWER,),
    "tests/e2e/*": (IMAGE, ANSWER, LET_GO),
    "tests/interop/*": (IMAGE,),
    "tests/faults/*": (TELL,),
    "tests/client/*": (ANSWER, TELL),
    "worker/llava_worker/language/conversation_templates.py": (ANSWER,),
    "worker/llava_worker/tiny/README.md": (ANSWER,),
    "server/llava_server/api/*/request.py": (ANSWER,),
    "server/llava_server/api/*/response.py": (ANSWER,),
    "server/llava_server/api/fields/messages.py": (ANSWER,),
    "server/llava_server/api/tools/prompt.py": (ANSWER,),
    "server/llava_server/api/chat/routes.py": (ANSWER,),  # names of operations in the OpenAPI document
    "server/llava_server/playground/app.js": (IMAGE,),
    "server/llava_server/playground/output_format.js": (ANSWER,),
    "client/llava_cli/bench/prompts.py": (IMAGE, TELL, STAND),
    "client/llava_cli/evaluation/benchmarks.py": (ANSWER,),  # prompts, and columns of datasets
    "client/llava_cli/evaluation/lmms_harness/*": (ANSWER,),
    "client/llava_cli/up/display.py": (IMAGE,),
    "examples/README.md": (IMAGE, ANSWER),
    "docs/reference/python*.md": (ANSWER,),
    "docs/guides/benchmarks.md": (ANSWER,),  # a prompt and a column of a dataset
    "bench/*": (IMAGE, ANSWER),
    # public names
    "client/llava_client/*": (ANSWER, IS_OVER),
    # names in messages between server and worker, in Redis and in traces
    "wire/llava_wire/messages/*": (ANSWER,),
    "wire/llava_wire/redis/*": (WARD, FORGET),
    "deploy/*users.acl": (WARD,),
    "deploy/secrets/*": (WARD,),  # git-ignored: created from users.acl
    "server/llava_server/tracing.py": (IMAGE,),
    "worker/llava_worker/telemetry/*": (LET_GO,),
    "tests/security/*": (IMAGE,),  # a host name
}

PATTERNS = {
    words: re.compile(rf"(?<!\w)(?<!--)(?:{words})(?!\w)".replace(" ", r"\s+"), re.IGNORECASE)
    for words in WORDS
}
CODE = re.compile(r"``.+?``|`[^`\n]+`")
KEY = re.compile(r"[\w./:{}*-]*")  # a word that programs read, such as the name of a field
TEXT_SUFFIXES = {".md", ".js", ".html", ".css", ".lua", ".cpp", ".h", ".yaml", ".yml", ".toml", ".acl", ".sh"}
TEXT_NAMES = {"Makefile", ".env.example"}
FOLDERS = ("wire", "server", "worker", "client", "tests", "tools", "bench", "examples", "deploy", "docs", ".")


def python_texts(source: str) -> Iterator[tuple[int, str]]:
    """Yield (line, text) for each comment, each string that is not a key, and each defined name."""
    tree = ast.parse(source)
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            if not KEY.fullmatch(node.value):
                yield node.lineno, CODE.sub("", node.value) if id(node) in docstrings else node.value
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.lineno, as_words(node.name)
        elif isinstance(node, ast.arg):
            yield node.lineno, as_words(node.arg)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, as_words(node.id)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], CODE.sub("", token.string)


def as_words(name: str) -> str:
    """Return the words of an identifier, separated by spaces."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])|[_0-9]+", " ", name)


def plain_texts(source: str) -> Iterator[tuple[int, str]]:
    """Yield (line, text) for each paragraph of a file, without the code in Markdown pages."""
    without_blocks = re.sub(
        r"^```.*?^```", lambda block: "\n" * block[0].count("\n"), source, flags=re.M | re.S
    )
    line = 1
    for paragraph in re.split(r"(?<=\n)\n", without_blocks):
        yield line, CODE.sub("", paragraph)
        line += paragraph.count("\n") + 1


def uses(path: str, source: str) -> list[str]:
    """Return a message for each listed word in the file, with its line and the suggested replacement."""
    texts = python_texts(source) if path.endswith(".py") else plain_texts(source)
    allowed = {words for pattern, each in ALLOWED.items() if fnmatch(path, pattern) for words in each}
    return [
        f"{path}:{line}: {match[0]!r}: write {WORDS[words]}"
        for line, text in texts
        for words, pattern in PATTERNS.items()
        if words not in allowed
        for match in pattern.finditer(text)
    ]


def files(folder: str) -> list[Path]:
    """Return the text files in a folder of the project. "." means only the files in the top folder."""
    found = ROOT.glob("*") if folder == "." else (ROOT / folder).rglob("*")
    return sorted(path for path in found if path.is_file() and is_text(path))


def is_text(path: Path) -> bool:
    is_named = path.name in TEXT_NAMES or path.name.startswith("Dockerfile")
    return (is_named or path.suffix in {".py", *TEXT_SUFFIXES}) and BENCH_ENVIRONMENTS not in path.parents


@pytest.mark.parametrize("folder", FOLDERS)
def test_texts_and_names_use_standard_terms(folder: str) -> None:
    paths = files(folder)
    assert paths
    assert [
        each for path in paths for each in uses(path.relative_to(ROOT).as_posix(), path.read_text("utf-8"))
    ] == []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("a.py", 'raise ValueError("the picture is too large")'),
        ("a.py", '"""Return an answer."""'),
        ("a.py", "x = 1  # nobody reads it"),
        ("a.py", "def test_a_picture_is_sent(): ..."),
        ("a.py", "class Picture: ..."),
        ("a.py", "def send(*, picture): ..."),
        ("a.py", "for picture in images: ..."),
        ("a.py", 'raise ValueError("Pictures!")'),
        ("a.py", 'raise ValueError("The `picture` is too large.")'),
        ("a.py", "x = 1  # a picture-based test"),
        ("a.md", "The request goes\non."),
        ("a.py", 'f"{n} tokens a second"'),
        ("a.md", "The request goes on."),
        ("a.js", "// come again later"),
    ],
)
def test_a_word_of_the_list_is_found(path: str, source: str) -> None:
    assert len(uses(path, source)) == 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("a.py", 'code = "answer_not_found"  # a public error code'),
        ("a.py", '"""Return the response to the request, one token per step."""'),
        ("docs/project/writing.md", "| picture | image |"),
    ],
)
def test_public_names_standard_terms_and_the_guide_itself_are_allowed(path: str, source: str) -> None:
    assert uses(path, source) == []
