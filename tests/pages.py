"""The pages for people: README.md, CONTRIBUTING.md, CHANGELOG.md, deploy/README.md and docs/, read as Markdown."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "deploy/README.md")),
        *(ROOT / "docs").rglob("*.md"),
    )
)
PROGRAMS = ("eqreg", "dvc", "make", "python")
"""Programs whose commands are checked."""

OTHERS = (
    ".",
    "export",
    "git",
    "gto",
    "mlflow",
    "pip",
    "ray",
    "mkdir",
    "helm",
    "docker",
    "kubectl",
    "code",
    "optuna-dashboard",
)
"""Programs whose commands stand in pages and are not checked."""


@dataclass(frozen=True)
class Block:
    """A block of code.

    Attributes:
        language: after the opening fence; "" if there is none.
        text: its lines.
        note: the HTML comment right before it; "" if there is none.
    """

    language: str
    text: str
    note: str


@cache
def tokens(page: str) -> list[Token]:
    """The page's blocks."""
    return MarkdownIt("commonmark").enable("table").parse((ROOT / page).read_text())


def inline(page: str, kind: str) -> Iterator[Token]:
    """The tokens of one kind inside the page's text."""
    for token in tokens(page):
        yield from (child for child in token.children or () if child.type == kind)


def codes(page: str) -> list[str]:
    """What stands between backticks in the page's text."""
    return [token.content for token in inline(page, "code_inline")]


def links(page: str) -> list[str]:
    """Where links and images of the page point."""
    found = [(token.attrGet("href")) for token in inline(page, "link_open")]
    return [str(target) for target in (*found, *(token.attrGet("src") for token in inline(page, "image")))]


@cache
def anchors(page: str) -> set[str]:
    """The anchors of the page's headings, as GitHub makes them."""
    seen: Counter[str] = Counter()
    found = set()
    for before, token in zip(tokens(page), tokens(page)[1:], strict=False):
        if before.type == "heading_open":
            text = "".join(child.content for child in token.children or () if child.type in ("text", "code_inline"))
            slug = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
            found.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
            seen[slug] += 1
    return found


def blocks(page: str) -> list[Block]:
    """The page's blocks of code."""
    found = []
    note = ""
    for token in tokens(page):
        if token.type == "fence":
            found.append(Block(token.info.strip(), token.content, note))
        html = re.fullmatch(r"<!--(.*)-->", token.content.strip(), re.DOTALL) if token.type == "html_block" else None
        note = html[1].strip() if html else ""
    return found


def python_blocks(page: str) -> list[Block]:
    """The page's Python."""
    return [block for block in blocks(page) if block.language == "python"]


def commands(page: str) -> list[list[str]]:
    """The words of each command of ``PROGRAMS`` in the page's blocks without a language.

    Raises:
        ValueError: such a block has a line that is of no known program.
    """
    lines = [line for block in blocks(page) if block.language == "" for line in block.text.splitlines()]
    found = []
    for line in lines:
        words = shlex.split(line, comments=True)
        if not words:
            continue
        if words[0].removeprefix(".venv/bin/") not in PROGRAMS and not is_other(words[0]):
            raise ValueError(f"{page}: {line}: of no known program; give the block a language, as text")
        found += split(words)
    return of_programs(found)


def mentions(page: str) -> list[list[str]]:
    """The words of each command of ``PROGRAMS`` between backticks, which may be without its arguments."""
    return of_programs([shlex.split(code) for code in codes(page) if re.match(r"[\w./]+ [^=]", code)])


def of_programs(found: list[list[str]]) -> list[list[str]]:
    """Those commands that are of ``PROGRAMS``."""
    named = [[words[0].removeprefix(".venv/bin/"), *words[1:]] for words in found if words]
    return [words for words in named if words[0] in PROGRAMS]


def is_other(program: str) -> bool:
    """Whether a command is not checked."""
    return program in OTHERS or program.startswith("code=") or (ROOT / program).is_file()


def split(words: list[str]) -> list[list[str]]:
    """The commands of a line that ``&&`` joins."""
    whole: list[list[str]] = [[]]
    for word in words:
        if word == "&&":
            whole.append([])
        else:
            whole[-1].append(word)
    return whole


def table(page: str, heading: str) -> dict[str, list[str]]:
    """The first table below a heading: the first cell of each row -> the other cells, as they are written."""
    lines = (ROOT / page).read_text().splitlines()
    rows = []
    for line in lines[lines.index(heading) + 1 :]:
        if line.startswith("|"):
            rows.append([cell.strip() for cell in line.strip().strip("|").split("|")])
        elif rows:
            break
    return {row[0]: row[1:] for row in rows[2:]}
