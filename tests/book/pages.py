"""The pages of the book, and what is in them."""

import re
from pathlib import Path
from typing import Iterator, NamedTuple, Optional

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
FENCE = re.compile(r"^( *)(`{3,}|~{3,})\s*([^\s`]*)")
COMMENT = re.compile(r"^\s*<!--\s*(.*?)\s*-->\s*$")


class Block(NamedTuple):
    """A fenced code block."""

    # the word after the fence; empty if there is none
    language: str
    # the number of its first line in the page
    line: int
    text: str
    # the text of the HTML comment in the line before it
    comment: str


class Page:
    """A Markdown file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.blocks: list[Block] = []
        # the lines outside of code blocks, by their numbers
        self.prose: dict[int, str] = {}
        # the open block: its fence and the blanks before it, its language, first line, comment and lines
        fence, indent, language, first, comment = "", "", "", 0, ""
        lines: list[str] = []
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            match = FENCE.match(line)
            if fence:
                if match and match[2].startswith(fence) and not match[3]:
                    self.blocks.append(Block(language, first, "".join(f"{text}\n" for text in lines), comment))
                    fence = ""
                else:
                    lines.append(line.removeprefix(indent))
            elif match:
                indent, fence, language = match.groups()
                first, lines = number + 1, []
                comment = self.comment_before(number)
            else:
                self.prose[number] = line
        if fence:
            raise SystemExit(f"{self.name}:{first - 1}: the code block has no end")

    @property
    def name(self) -> str:
        """The path in the repository."""
        return str(self.path.relative_to(ROOT)) if self.path.is_relative_to(ROOT) else str(self.path)

    def comment_before(self, number: int) -> str:
        """The text of the HTML comment in the line before this one."""
        match = COMMENT.match(self.prose.get(number - 1, ""))
        return match[1] if match else ""

    def labeling_configs(self) -> Iterator[Block]:
        """The blocks that are whole labeling configs."""
        return (block for block in self.blocks if block.language == "xml" and block.text.lstrip().startswith("<View"))


def pages(docs: Path = DOCS) -> list[Page]:
    """The pages of the book."""
    return [Page(path) for path in sorted(docs.rglob("*.md"))]


def config_of(name: str, docs: Path = DOCS) -> Optional[str]:
    """The labeling config of the page with this file name; None if there is no such page or no config in it."""
    for path in sorted(docs.rglob(f"{name}.md")):
        for block in Page(path).labeling_configs():
            return block.text
    return None
