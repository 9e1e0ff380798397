"""The parts of a page of documentation: commands, Python, trees of folders, links, and text between backticks.

A block of code without a language is a tree if it begins with a folder, a diagram if it has arrows, and Python if it
can be parsed as Python. Otherwise it holds commands. A block of any other kind needs a fence that names its language.
"""

import ast
import builtins
import re
import shlex
from collections import Counter
from collections.abc import Iterator
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Literal

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parent.parent.parent
Kind = Literal["commands", "python", "tree", "other"]

COMMAND = re.compile(r"(\S*python -m|ray|accelerate launch|torchrun|make|docker|pip|kubectl) \S")
"""Pattern of the beginning of a command between backticks."""
COMMENT = re.compile(r"(^|\s+)#.*")
SHELLS = ("", "sh", "bash")  # languages of a fence around commands
LONGEST_NAME = 20  # characters of a file's name and indentation in a tree; text farther right continues a description


class Document:
    """A text in Markdown, divided into its parts. Every list is in the order of the text."""

    def __init__(self, text: str) -> None:
        self.tokens = MarkdownIt("commonmark").enable("table").parse(text)

    @cached_property
    def commands(self) -> list[str]:
        """Commands without comments, each on one line and listed once."""
        found: list[str] = []
        for token in self._flat():
            if token.type == "code_inline" and COMMAND.match(token.content):
                found.append(token.content)
            elif is_block(token) and kind_of(token) == "commands":
                found += lines_of(token.content)
        return list(dict.fromkeys(found))

    @cached_property
    def steps(self) -> list[tuple[Kind, str]]:
        """Kind and content of each block of commands or Python, in the order of the text."""
        blocks = [(kind_of(token), token.content) for token in self.tokens if is_block(token)]
        return [(kind, content) for kind, content in blocks if kind in ("commands", "python")]

    @cached_property
    def snippets(self) -> list[str]:
        """Blocks of Python."""
        return [token.content for token in self.tokens if is_block(token) and kind_of(token) == "python"]

    @cached_property
    def trees(self) -> list[dict[str, str]]:
        """Trees of folders. Each is a dictionary from paths to their descriptions."""
        return [tree(token.content) for token in self.tokens if is_block(token) and kind_of(token) == "tree"]

    @cached_property
    def codes(self) -> list[str]:
        """Texts between backticks, without the blocks of code."""
        return [token.content for token in self._flat() if token.type == "code_inline"]

    @cached_property
    def links(self) -> list[str]:
        """Targets of links, and sources of pictures."""
        found = (token.attrGet({"link_open": "href", "image": "src"}.get(token.type, "")) for token in self._flat())
        return [str(target) for target in found if target is not None]

    @cached_property
    def anchors(self) -> set[str]:
        """Anchors of headings as GitHub names them: words joined by dashes, and a number if the name is repeated."""
        seen: Counter[str] = Counter()
        found: set[str] = set()
        for opening, inline in pairwise(self.tokens):
            if opening.type == "heading_open":
                text = "".join(part.content for part in inline.children or [])
                name = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
                found.add(f"{name}-{seen[name]}" if seen[name] else name)
                seen[name] += 1
        return found

    def _flat(self) -> Iterator[Token]:
        for token in self.tokens:
            yield token
            yield from token.children or []


def is_block(token: Token) -> bool:
    return token.type in ("code_block", "fence")


def kind_of(block: Token) -> Kind:
    """Return the kind of a block of code, by the language of its fence or else by its content."""
    language, content = block.info.strip(), block.content
    if language == "python":
        return "python"
    if language not in SHELLS:
        return "other"
    if re.match(r"\S+/(\s|$)", content):
        return "tree"
    if re.search(r"--[>+]|[│└├]", content):
        return "other"
    try:
        ast.parse(content)
    except SyntaxError:
        return "commands"
    return "python"


def lines_of(block: str) -> Iterator[str]:
    for line in block.replace("\\\n", " ").splitlines():
        if command := " ".join(COMMENT.sub("", line).split()):
            yield command


def tree(block: str) -> dict[str, str]:
    """Return the description of each path in a tree, by path.

    The content of a folder is indented by two more spaces than the folder. `a, b` are two paths with one description.
    """
    found: dict[str, str] = {}
    names: list[str] = []
    folders: list[str] = []
    for line in block.splitlines():
        indentation = len(line) - len(line.lstrip())
        if indentation >= LONGEST_NAME:
            for name in names:
                found[name] += f" {line.strip()}"
            continue
        written, _, said = re.sub(r"\s{2,}", "\t", line.strip()).partition("\t")
        folders = folders[: indentation // 2]
        names = ["".join(folders) + name for name in written.split(", ")]
        folders.append(written)
        found |= dict.fromkeys(names, said)
    return found


def unknown_names(snippet: str, known: set[str]) -> set[str]:
    """Return the names that a snippet reads but does not define or import.

    The names in `known` and Python's built-ins are left out.
    """
    nodes = [*ast.walk(ast.parse(snippet))]
    read = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    return read - names_of(snippet) - known - set(dir(builtins))


def names_of(snippet: str) -> set[str]:
    """Return the names that a snippet assigns, defines or imports, including the arguments of functions."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(snippet)):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.arg):
            found.add(node.arg)
        elif isinstance(node, ast.alias):
            found.add((node.asname or node.name).partition(".")[0])
        elif isinstance(node, ast.ClassDef | ast.FunctionDef):
            found.add(node.name)
    return found


def files_for_docker(command: str) -> set[str]:
    """Return the files that a docker command names with `-f`, or else the default file that it reads."""
    words = shlex.split(command)
    named = {after for word, after in pairwise(words) if word in ("-f", "--file")}
    read = {"build": "Dockerfile", "compose": "compose.yaml"}
    return named or {read[word] for word in words[1:2] if word in read}
