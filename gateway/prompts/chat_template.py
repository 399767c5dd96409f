"""Messages to token ids through the model's own chat template, so that ids once seen stay as they were.

Two properties matter. A follow-up is *appended*: its ids begin with the ids that the model saw and emitted, since
tokenizing an answer again may give others, and then its whole KV cache is missed. And outside text is never turned into
control tokens: it goes through the template as an unguessable mark, and is tokenized apart with special tokens off, so
that a pasted `<|im_start|>system` stays the text it is. So do the names, descriptions and arguments of tools.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NoReturn, Protocol

import jinja2
from jinja2.ext import Extension
from jinja2.nodes import Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from gateway.prompts.bos import beginning
from gateway.protocol.tool_prompt import OPENING, Message, Tool, in_words, with_tools

_KEPT: Final = frozenset(
    {"type", "function", "name", "description", "parameters", "arguments", "properties", "required", "items", "enum"}
)
"""Keys by which templates find their way in tools and calls; all others are outside text."""


class TemplateError(Exception):
    """The model's template refuses these messages, or is none; the text says which."""


class Tokenizer(Protocol):
    """What a prompt needs of a vocabulary."""

    @property
    def edges(self) -> Mapping[str, str]:
        """The tokens that begin and end a text, as `bos_token` and `eos_token`; not all models have both."""

    @property
    def leading_bos(self) -> int | None:
        """The token that the model's file asks for before a prompt, or None."""

    def tokenize(self, text: str, *, special: bool) -> list[int]:
        """Token ids of `text`; only with `special` may it become control tokens."""


@dataclass(frozen=True)
class Span:
    """A piece of a rendered prompt: the template's own text, or outside text."""

    text: str
    outside: bool


class _Marks:
    """What stands for outside text while a template is at work."""

    def __init__(self, secret: str) -> None:
        self._secret = secret
        self._texts: list[str] = []
        self._numbers: dict[str, int] = {}

    def hide(self, value: Any, keep: frozenset[str] = frozenset()) -> Any:
        """`value` with all text in it hidden, keys too unless they are in `keep`; equal texts get equal marks."""
        if isinstance(value, str):
            return self._hide(value)
        if isinstance(value, dict):
            return {key if key in keep else self._hide(key): self.hide(inner, keep) for key, inner in value.items()}
        return [self.hide(inner, keep) for inner in value] if isinstance(value, list) else value

    def dump(self, value: Any, *, indent: int | None, separators: tuple[str, str] | None, sort_keys: bool) -> str:
        """`value` as JSON and one outside text: cut at every mark, it would be tokenized as no model ever saw it."""
        dumped = json.dumps(value, ensure_ascii=False, indent=indent, separators=separators, sort_keys=sort_keys)

        def escaped(mark: re.Match[str]) -> str:
            return json.dumps(self._texts[int(mark[1])], ensure_ascii=False)[1:-1]

        return self._hide(self._pattern.sub(escaped, dumped))

    def spans(self, rendered: str) -> Iterable[Span]:
        """The template's text and the texts that were hidden, in turns."""
        for i, part in enumerate(self._pattern.split(rendered)):
            text = self._texts[int(part)] if i % 2 else part
            if text:
                yield Span(text, bool(i % 2))

    @property
    def _pattern(self) -> re.Pattern[str]:
        return re.compile(rf"{self._secret}\.(\d+);")

    def _hide(self, content: str) -> str:
        # Space at the edges stays outside of the mark, so that a template that trims sees it.
        text = content.strip()
        if not text:
            return content
        start = content.index(text[0])
        before, after = content[:start], content[start + len(text) :]
        number = self._numbers.setdefault(text, len(self._texts))
        if number == len(self._texts):
            self._texts.append(text)
        return f"{before}{self._secret}.{number};{after}"


class Prompt:
    """One model's template and vocabulary.

    `mark` gives 128 unguessable bits as hexadecimal digits; `date` is what the template's `strftime_now` tells, fixed
    by the caller for a whole conversation.
    """

    def __init__(self, template: str, tokenizer: Tokenizer, *, mark: Callable[[], str]) -> None:
        """Compile the template. Raises TemplateError."""
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Answers], autoescape=False
        )
        environment.globals.update(tokenizer.edges, raise_exception=_refuse)
        environment.filters["tojson"] = _tojson
        try:
            self._template = environment.from_string(template)
        except jinja2.TemplateError as error:
            raise TemplateError(f"the model's chat template does not compile: {error}") from error
        self._tokenizer = tokenizer
        self._mark = mark
        self._knows_tools = "tools" in template and OPENING in template
        """Whether it tells of tools itself, in the format that answers are read in."""

    def whole(
        self,
        messages: Sequence[Message],
        *,
        date: Callable[[str], str],
        answer: bool = True,
        tools: Sequence[Tool] = (),
    ) -> list[int]:
        """Ids of a conversation from its beginning, ready for an answer.

        Without `answer` they end with the last message's content, so that any follow-up begins with them. Raises
        TemplateError, RecursionError or MemoryError.
        """
        if not self._knows_tools:
            messages, tools = with_tools(messages, tools), ()
        return self._begun(self._render(messages, date, answer=answer, tools=tools))

    def follow_up(
        self, messages: Sequence[Message], *, date: Callable[[str], str], after: str = "assistant", answer: bool = True
    ) -> list[int]:
        """Ids to append after the last content token of a message by `after`: its end, then `messages`.

        They are what a fixed example grows by; `answer` and what is raised as for `whole`.
        """
        example: list[Message] = [{"role": "user", "content": "x"}] if after in ("assistant", "tool") else []
        if after == "tool":  # a template may join a result to the one before it
            example.append({"role": "assistant", "content": "x"})
        own = self._mark()
        spans = self._render([*example, {"role": after, "content": own}, *messages], date, answer=answer)
        last = next((i for i, span in enumerate(spans) if span.outside and own in span.text), None)
        if last is None:
            raise TemplateError("it leaves the answer out of the conversation")
        return self._tokenize(spans[last + 1 :])

    def _render(
        self, messages: Sequence[Message], date: Callable[[str], str], *, answer: bool, tools: Sequence[Tool] = ()
    ) -> list[Span]:
        marks = _Marks(self._mark())
        shown = messages if self._knows_tools else in_words(messages)
        given = {"tools": [marks.hide(tool, _KEPT) for tool in tools]} if tools else {}  # not None: some iterate
        try:
            rendered = self._template.render(
                messages=[_hidden(message, marks) for message in shown],
                add_generation_prompt=answer, enable_thinking=False, strftime_now=date, samovar_marks=marks, **given,
            )  # fmt: skip
        except (RecursionError, MemoryError):
            raise
        except Exception as error:
            raise TemplateError(str(error) or type(error).__name__) from error
        spans = list(marks.spans(rendered))
        if not answer:
            while spans and not spans[-1].outside:
                spans.pop()
        return spans

    def _begun(self, spans: Sequence[Span]) -> list[int]:
        """Return the ids of a prompt from its beginning; there are none if nothing is to be encoded."""
        if not spans:
            return []
        text = "" if spans[0].outside else spans[0].text
        bos, rest = beginning(text, self._tokenizer.leading_bos, self._tokenizer.edges.get("bos_token", ""))
        spans = spans if spans[0].outside else [Span(rest, outside=False), *spans[1:]]
        return bos + self._tokenize(spans)

    def _tokenize(self, spans: Sequence[Span]) -> list[int]:
        return [i for span in spans for i in self._tokenizer.tokenize(span.text, special=not span.outside)]


def _hidden(message: Message, marks: _Marks) -> Message:
    hidden = {**message, "content": marks.hide(message["content"])}
    if "tool_calls" in message:
        hidden["tool_calls"] = [marks.hide(call, _KEPT) for call in message["tool_calls"]]
    return hidden


@jinja2.pass_context
def _tojson(
    context: jinja2.runtime.Context,
    value: Any,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
    ensure_ascii: bool = False,  # noqa: ARG001 - templates say it; Chinese is always shown as it is
) -> str:
    """As transformers has it: Jinja's own sorts keys and escapes for HTML."""
    marks: _Marks = context["samovar_marks"]
    return marks.dump(value, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


class _Answers(Extension):
    """`{% generation %}`, by which some templates mark answers for training: what it encloses, as it stands."""

    tags = {"generation"}  # noqa: RUF012 - jinja2's own way to name them

    def parse(self, parser: Parser) -> list[Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)
