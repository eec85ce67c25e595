"""A preprocessor of mdBook for links that leave the book.

A page may link to a document elsewhere in the repository, such as ../SECURITY.md; a code host then shows that file. In the
built book there is nothing outside of it. So every Markdown file that a page links to becomes a page of the book too, below
"Files of the repository", also if only another such file links to it. A link to anything else outside of the book is left
out, and its text stays.

mdBook starts this program with "supports RENDERER", and then without arguments: the standard input is the list of the
context and the book, and the standard output must be the book.
"""

import json
import posixpath
import re
import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
# the folder of the added pages in the built book
FOLDER = "repository"
LINK = re.compile(r"(?<!!)\[((?:[^\[\]]|\[[^\[\]]*\])*)\]\(([^()\s]+)\)")
DEFINITION = re.compile(r"^(\[[^\[\]]+\]): +(\S+)$", re.MULTILINE)
FENCE = re.compile(r"(^```.*?^```[^\n]*$)", re.MULTILINE | re.DOTALL)


class Repository:
    """Rewrites links, and collects the files that become pages."""

    def __init__(self) -> None:
        self.pages = {}
        self.pending = []

    def rewritten(self, text: str, page: str, source: str) -> str:
        """A page with other links. `page` is its path in the book, `source` its path in the repository."""

        def link(match: re.Match) -> str:
            target = self.target(match[2], page, source)
            return match[1] if target is None else f"[{match[1]}]({target})"

        def definition(match: re.Match) -> str:
            target = self.target(match[2], page, source)
            return f"{match[1]}: {target or '#'}"

        parts = FENCE.split(text)
        # the parts with odd numbers are code
        parts[::2] = [DEFINITION.sub(definition, LINK.sub(link, part)) for part in parts[::2]]
        return "".join(parts)

    def target(self, link: str, page: str, source: str) -> "str | None":
        """The link as the book has it; None if its target is not in the book."""
        path, hash_sign, anchor = link.partition("#")
        if not path or re.match(r"[a-z]+:", path):
            return link
        file = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
        if file.startswith("docs/"):
            in_book = file.removeprefix("docs/")
        elif (ROOT / file).is_dir() and (ROOT / file / "README.md").is_file():
            in_book = self.add(f"{file}/README.md")
        elif file.endswith(".md") and (ROOT / file).is_file():
            in_book = self.add(file)
        else:
            return None
        return posixpath.relpath(in_book, posixpath.dirname(page) or ".") + hash_sign + anchor

    def add(self, file: str) -> str:
        """Makes a page of a file. Returns the path of the page."""
        # a page that is named README.md would become index.html, but links to it would not
        page = f"{FOLDER}/{file.replace('README.md', 'readme-file.md')}"
        if file not in self.pages:
            self.pages[file] = page
            self.pending.append(file)
        return page

    def chapters(self) -> list:
        """The added pages, sorted by their names."""
        chapters = []
        while self.pending:
            file = self.pending.pop()
            text = self.rewritten((ROOT / file).read_text(encoding="utf-8"), self.pages[file], file)
            chapters.append(
                {
                    "name": file,
                    "content": text,
                    "number": None,
                    "sub_items": [],
                    "path": self.pages[file],
                    "source_path": None,
                    "parent_names": [],
                }
            )
        chapters.sort(key=lambda chapter: chapter["name"])
        return [{"Chapter": chapter} for chapter in chapters]


def main() -> None:
    if sys.argv[1:2] == ["supports"]:
        return
    _, book = json.load(sys.stdin)
    # mdBook 0.5 says "items", older ones "sections"
    items = book["items"] if "items" in book else book["sections"]
    repository = Repository()

    def rewrite(items: list) -> None:
        for item in items:
            if "Chapter" in item and item["Chapter"]["path"]:
                chapter = item["Chapter"]
                page = chapter["path"]
                chapter["content"] = repository.rewritten(chapter["content"], page, f"docs/{page}")
                rewrite(chapter["sub_items"])

    rewrite([item for item in items if isinstance(item, dict)])
    added = repository.chapters()
    if added:
        items.extend([{"PartTitle": "Files of the repository"}, *added])
    json.dump(book, sys.stdout)


if __name__ == "__main__":
    main()
