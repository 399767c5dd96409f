"""Messages to token ids through the model's own chat template, so that ids once seen stay as they were.

Two properties matter. A follow-up is *appended*: its ids begin with the ids that the model saw and emitted, since
tokenizing an answer again may give others, and then its whole KV cache is missed. And outside text is never turned into
control tokens: it goes through the template as an unguessable mark, and is tokenized apart with special tokens off, so
that a pasted `<|im_start|>system` stays the text it is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NoReturn, Protocol

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

Message = dict[str, str]
"""`role` (system, user or assistant) and `content`."""

_EDGES: Final = re.compile(r"^(\s*)(.*?)(\s*)$", re.DOTALL)


class TemplateError(Exception):
    """The model's template refuses these messages, or is none; the text says which."""


class Tokenizer(Protocol):
    """What a prompt needs of a vocabulary."""

    def tokenize(self, text: str, *, special: bool) -> list[int]:
        """Token ids of `text`; only with `special` may it become control tokens."""


@dataclass(frozen=True)
class Span:
    """A piece of a rendered prompt: the template's own text, or outside text."""

    text: str
    outside: bool


class Prompt:
    """One model's template and vocabulary.

    `mark` gives 128 unguessable bits as hexadecimal digits; `date` is what the template's `strftime_now` tells, fixed
    by the caller for a whole conversation.
    """

    def __init__(self, template: str, tokenizer: Tokenizer, *, mark: Callable[[], str]) -> None:
        """Compile the template. Raises TemplateError."""
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"], autoescape=False
        )
        environment.globals["raise_exception"] = _refuse
        try:
            self._template = environment.from_string(template)
        except jinja2.TemplateError as error:
            raise TemplateError(f"the model's chat template does not compile: {error}") from error
        self._tokenizer = tokenizer
        self._mark = mark

    def whole(self, messages: Sequence[Message], *, date: Callable[[str], str], answer: bool = True) -> list[int]:
        """Ids of a conversation from its beginning, ready for an answer. Raises TemplateError.

        Without `answer` they end with the last message's content, so that any follow-up begins with them.
        """
        return self._tokenize(self._render(messages, date, answer=answer))

    def follow_up(
        self, messages: Sequence[Message], *, date: Callable[[str], str], after: str = "assistant", answer: bool = True
    ) -> list[int]:
        """Ids to append after the last content token of a message by `after`: its end, then `messages`.

        They are what a fixed example grows by; `answer` as for `whole`. Raises TemplateError.
        """
        example = [{"role": "user", "content": "x"}] if after == "assistant" else []
        spans = self._render([*example, {"role": after, "content": "y"}, *messages], date, answer=answer)
        last = next(i for i, span in enumerate(spans) if span.outside and span.text == "y")
        return self._tokenize(spans[last + 1 :])

    def _render(self, messages: Sequence[Message], date: Callable[[str], str], *, answer: bool) -> list[Span]:
        secret = self._mark()
        texts: list[str] = []

        def hide(content: str) -> str:
            # Space at the edges stays outside of the mark, so that a template that trims sees it.
            match = _EDGES.match(content)
            before, text, after = match.groups() if match else ("", content, "")
            if not text:
                return content
            texts.append(text)
            return f"{before}{secret}.{len(texts) - 1};{after}"

        hidden: list[dict[str, Any]] = [{**message, "content": hide(message["content"])} for message in messages]
        try:
            rendered = self._template.render(
                messages=hidden, add_generation_prompt=answer, enable_thinking=False, strftime_now=date
            )
        except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError) as error:
            raise TemplateError(str(error)) from error
        parts = re.split(rf"{secret}\.(\d+);", rendered)
        spans = [Span(texts[int(part)], True) if i % 2 else Span(part, False) for i, part in enumerate(parts)]
        spans = [span for span in spans if span.text]
        if not answer:
            while spans and not spans[-1].outside:
                spans.pop()
        return spans

    def _tokenize(self, spans: Sequence[Span]) -> list[int]:
        return [i for span in spans for i in self._tokenizer.tokenize(span.text, special=not span.outside)]


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
