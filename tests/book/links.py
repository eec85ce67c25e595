"""Checks of links: files, anchors and pictures exist, and every page is in the summary."""

import re
from functools import cache
from pathlib import Path
from typing import Iterator

from pages import DOCS, Page

CODE_SPAN = re.compile(r"(`+)(.+?)\1")
# [text](target) and ![text](target "title"); the text of a link may contain a picture
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\[\]]*\](?:\([^()]*\))?)*)\]\(\s*<?([^()\s<>]+(?:\([^()]*\))?)>?(?:\s+\"[^\"]*\")?\s*\)")
DEFINITION = re.compile(r"^ {0,3}\[[^\[\]]+\]:\s+<?(\S+?)>?(?:\s|$)")
HTML_IMAGE = re.compile(r"<img\b[^>]*?\bsrc=\"([^\"]+)\"")
HTML_ANCHOR = re.compile(r"<[a-z0-9]+\b[^>]*?\b(?:id|name)=\"([^\"]+)\"")
HEADING = re.compile(r"^ {0,3}(#{1,6})\s+(.*?)\s*#*\s*$")
ADDRESS = re.compile(r"^[a-z][a-z0-9+.-]*:")


def without_code(line: str) -> str:
    """A line without the contents of code spans."""
    return CODE_SPAN.sub("``", line)


def links(page: Page) -> Iterator[tuple[int, str, bool, str]]:
    """The line, the target, and whether it is a picture, with its text."""
    for number, line in page.prose.items():
        text = without_code(line)
        yield from links_in(number, text)
        for target in HTML_IMAGE.findall(text):
            yield number, target, True, "HTML"
        definition = DEFINITION.match(text)
        if definition:
            yield number, definition[1], False, ""


def links_in(number: int, text: str) -> Iterator[tuple[int, str, bool, str]]:
    """The links of a text, also those inside the text of another link."""
    for mark, inner, target in LINK.findall(text):
        yield number, target, mark == "!", inner
        yield from links_in(number, inner)


def anchor_of(heading: str) -> str:
    """The anchor of a heading, as code hosts make it; mdBook makes the same ones."""
    text = re.sub(r"!?\[((?:[^\[\]])*)\]\([^()]*\)", r"\1", heading)
    text = text.replace("`", "").strip().lower()
    return "".join("-" if letter == " " else letter for letter in text if letter.isalnum() or letter in " -_")


@cache
def anchors(path: Path) -> set[str]:
    """The anchors of a Markdown file."""
    found: set[str] = set()
    for line in Page(path).prose.values():
        found.update(HTML_ANCHOR.findall(line))
        heading = HEADING.match(line)
        if heading:
            # emphasis is markup, but an underscore inside a word is not
            anchor = anchor_of(re.sub(r"(\*+)(.+?)\1", r"\2", heading[2]))
            number = 0
            while (name := f"{anchor}-{number}" if number else anchor) in found:
                number += 1
            found.add(name)
    return found


def check_links(page: Page) -> tuple[int, list[tuple[int, str]]]:
    """Checks the links of a page. Returns their number, and the problems with their lines."""
    problems = []
    count = 0
    for line, target, is_picture, text in links(page):
        count += 1
        if ADDRESS.match(target):
            continue
        path, _, anchor = target.partition("#")
        if path.startswith("/"):
            problems.append((line, f"{target}: a link must be relative to the page"))
            continue
        file = (page.path.parent / path).resolve() if path else page.path
        if not file.exists():
            problems.append((line, f"{target}: there is no such {'picture' if is_picture else 'file'}"))
        elif is_picture and not text.strip():
            problems.append((line, f"{target}: the picture has no text that describes it"))
        elif anchor and file.suffix == ".md" and anchor not in anchors(file):
            close = ", ".join(sorted(name for name in anchors(file) if name[:4] == anchor[:4]))
            problems.append((line, f"{target}: {file.name} has no such heading; similar ones: {close or 'none'}"))
    return count, problems


def check_summary(pages: list[Page], docs: Path = DOCS) -> list[str]:
    """Checks that every page is in SUMMARY.md, once."""
    summary = docs / "SUMMARY.md"
    if not summary.is_file():
        return [f"there is no {summary}"]
    listed = [(docs / target).resolve() for _, target, _, _ in links(Page(summary)) if not ADDRESS.match(target)]
    problems = [f"{path.name} is listed twice" for path in sorted(set(listed)) if listed.count(path) > 1]
    for page in pages:
        if page.path.is_relative_to(docs) and page.path != summary and page.path not in listed:
            problems.append(f"{page.name} is not listed: add it, or delete the page")
    return problems
