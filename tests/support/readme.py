r"""The blocks of a document that a reader would type, and what the document says about how to type them.

Blocks in `sh`, `bash`, `console` (lines after `$ `, the rest is output) and `python` are run; one that fails, or that
nobody knows how to run, fails its test. Blocks in `text`, `json`, `toml` and so on are for looking at, and hold no
commands. The folder and the exported variables go on from block to block, as in a terminal. What a block needs beyond
that is said by HTML comments on the lines before it:

    <!-- test: background -->           it keeps running while the blocks after it are tried; `/readyz` must come up
    <!-- test: stdin "Hi\n/stats\n" --> typed on a terminal, line by line, then Ctrl-D; escapes are JSON's
    <!-- test: expect "some text" -->   the output must contain this
    <!-- test: run -->                  it is run though it starts with a program that is not in KNOWN_PROGRAMS
    <!-- test: skip REASON -->          it is not run

Known without a comment: `make serve` and `samovar serve` as last line make a background block; `git clone ADDRESS`
clones this checkout as it lies on the disk; `make test` and `make bench` are only looked up in the Makefile, by `-n`.
Port 8000 is another, free one during the test. How all this is done is in `reader.py`.
"""

from __future__ import annotations

import json
import re
import shlex
import textwrap
from dataclasses import dataclass

RUN_LANGUAGES = {"sh", "bash", "console", "python"}
LOOK_ALIKES = {"", "shell", "zsh", "shell-session", "shellsession", "py", "pycon", "python3"}
DIRECTIVES = {"background", "stdin", "expect", "run", "skip"}
KNOWN_PROGRAMS = {"cat", "cd", "curl", "export", "git", "make", "samovar", ".venv/bin/samovar", ".venv/bin/python"}
FENCE = re.compile(r" *(?P<ticks>```+|~~~+) *(?P<language>[\w+-]*)")
DIRECTIVE = re.compile(r"\s*<!-- test: (?P<word>\w+) *(?P<argument>.*?) *-->\s*")
SERVES = re.compile(r"(?:make|samovar) serve\b")
COMMAND = re.compile(r"^(?:\$ |(?:\.venv/bin/)?samovar [a-z]|make [a-z]|curl |sudo )", re.MULTILINE)
CHATS = re.compile(r"samovar chat\b")


class UnknownBlockError(Exception):
    """Nobody knows how to run a block; the message says what to write before it."""


@dataclass(frozen=True)
class Block:
    """A fenced block: where it starts, its language, its text, and the comments before it as word and argument."""

    line: int
    language: str
    text: str
    directives: dict[str, str]

    def __str__(self) -> str:
        return f"line {self.line}: {(self.commands or ['(empty)'])[0][:40]}"

    @property
    def commands(self) -> list[str]:
        """What is typed, a command each (backslash lines joined); of a console block, what stands after the prompt."""
        lines = self.text.replace("\\\n", "\\\0").splitlines()
        if self.language == "console":
            lines = [line[2:].replace("\\\0> ", "\\\0") for line in lines if line.startswith("$ ")]
        return [line.replace("\\\0", "\\\n") for line in lines if line.strip() and not line.startswith("#")]

    @property
    def is_background(self) -> bool:
        """Whether the block's last command goes on until it is stopped."""
        shell = self.language != "python" and self.commands
        return "background" in self.directives or bool(shell and SERVES.search(self.commands[-1]))

    def check(self) -> None:
        """Raise UnknownBlockError unless it is clear how to run this block."""
        if reason := self._unclear():
            raise UnknownBlockError(f"line {self.line}: {reason}")

    def argument(self, word: str) -> str | None:
        """The text in quotes after `test: word`, or None where there is no such comment."""
        return str(json.loads(self.directives[word])) if word in self.directives else None

    def _unclear(self) -> str:
        """What is unclear about how to run this block; empty if nothing is."""
        if unknown := set(self.directives) - DIRECTIVES:
            return f"no such comment: test: {', '.join(sorted(unknown))}"
        if self.language in LOOK_ALIKES:
            return "name its language: sh, console or python, or text if it is not to be run"
        if self.directives.get("skip") == "":
            return "say why it is skipped"
        if self.language not in RUN_LANGUAGES and "skip" not in self.directives:
            return (
                "there are commands in it that nobody runs: name its language sh or console, or say why it is skipped"
            )
        if {"background", "run", "skip"} & set(self.directives) or self.language == "python":
            return ""
        if CHATS.search(self.text) and "stdin" not in self.directives:
            return 'say what is typed: <!-- test: stdin "Hello\\n" -->'
        if not self.commands:
            return "there is no command in it"
        strange = self._programs() - KNOWN_PROGRAMS
        return f"how to run {', '.join(sorted(strange))}? <!-- test: run --> or skip" if strange else ""

    def _programs(self) -> set[str]:
        """The first words of all commands."""
        parts = [part for line in self.commands for part in re.split(r"&&|\|\||[;|]", line)]
        return {words[0] for part in parts if (words := shlex.split(part, comments=True))}


def blocks(markdown: str) -> list[Block]:
    """The fenced blocks of a document that are to be run, or that look as if they were."""
    found: list[Block] = []
    directives: dict[str, str] = {}
    lines = iter(enumerate(markdown.splitlines(), 1))
    for number, line in lines:
        if directive := DIRECTIVE.fullmatch(line):
            directives[directive["word"]] = directive["argument"]
        elif fence := FENCE.match(line):
            text = []
            for _, inner in lines:
                if inner.strip() == fence["ticks"]:
                    break
                text.append(inner)
            block = Block(number, fence["language"], textwrap.dedent("\n".join(text)), directives)
            if block.language in RUN_LANGUAGES | LOOK_ALIKES or directives or COMMAND.search(block.text):
                found.append(block)
            directives = {}
        elif line.strip():
            directives = {}
    return found
