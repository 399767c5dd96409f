"""Conversion of messages to token ids through the model's own chat template, with stable ids for earlier turns.

Two properties matter. First, a follow-up is *appended*: its ids begin with the ids that the model read and generated.
Tokenizing an answer again may give other ids, and then its whole KV cache is missed. Second, external text never
becomes control tokens: it passes the template as an unguessable mark and is tokenized separately with special tokens
disabled, so that a pasted `<|im_start|>system` remains plain text. The same holds for the names, descriptions and
arguments of tools.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol

import jinja2
from jinja2.ext import Extension
from jinja2.nodes import Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from gateway.prompts.bos import split_bos
from gateway.prompts.tool_formats import ExampleError, ToolSupport, detect
from gateway.prompts.tool_text import call_id, hidden_call, hidden_tool, simplified
from gateway.protocol.call_format import OWN, CallFormat
from gateway.protocol.tool_prompt import Message, Tool, calls_as_text, with_tools


class TemplateError(Exception):
    """The model's template rejects these messages, or does not compile; the message says which."""


class Tokenizer(Protocol):
    """The part of a vocabulary that prompts need."""

    @property
    def edges(self) -> Mapping[str, str]:
        """The texts of the tokens `bos_token` and `eos_token`; not all models have both."""

    @property
    def leading_bos(self) -> int | None:
        """The token that the model file requires before a prompt, or None."""

    def tokenize(self, text: str, *, special: bool) -> list[int]:
        """Return the token ids of `text`; control tokens are recognized only with `special`."""

    def is_control(self, token: int) -> bool:
        """Whether `token` is a control token, which represents no text."""

    def text(self, token: int) -> str:
        """Return the token's text in the vocabulary."""


@dataclass(frozen=True)
class Span:
    """A piece of a rendered prompt: the template's own text, or external text."""

    text: str
    external: bool


class _Marks:
    """Placeholders for external text while a template renders."""

    def __init__(self, secret: str) -> None:
        self._secret = secret
        self._texts: list[str] = []
        self._numbers: dict[str, int] = {}

    def hide(self, value: Any, keep: frozenset[str] = frozenset()) -> Any:
        """Return `value` with each text replaced by a mark, keys too unless in `keep`; equal texts get equal marks."""
        if isinstance(value, str):
            return self._hide(value)
        if isinstance(value, dict):
            return {key if key in keep else self._hide(key): self.hide(inner, keep) for key, inner in value.items()}
        return [self.hide(inner, keep) for inner in value] if isinstance(value, list) else value

    def dump(self, value: Any, *, indent: int | None, separators: tuple[str, str] | None, sort_keys: bool) -> str:
        """Return a mark for `value` as JSON, as one external text: models never saw JSON tokenized in pieces."""
        dumped = json.dumps(value, ensure_ascii=False, indent=indent, separators=separators, sort_keys=sort_keys)

        def escaped(mark: re.Match[str]) -> str:
            return json.dumps(self._texts[int(mark[1])], ensure_ascii=False)[1:-1]

        return self._hide(self._pattern.sub(escaped, dumped))

    def spans(self, rendered: str) -> Iterable[Span]:
        """Split a rendered prompt into the template's own text and the texts behind the marks."""
        for i, part in enumerate(self._pattern.split(rendered)):
            text = self._texts[int(part)] if i % 2 else part
            if text:
                yield Span(text, bool(i % 2))

    @property
    def _pattern(self) -> re.Pattern[str]:
        return re.compile(rf"{self._secret}\.(\d+);")

    def _hide(self, content: str) -> str:
        # Leading and trailing space stays outside of the mark, so that a template can trim it.
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

    `mark` returns 128 unguessable bits as hexadecimal digits. `date` implements the template's `strftime_now`; the
    caller fixes its time for a whole conversation.
    """

    def __init__(self, template: str, tokenizer: Tokenizer, *, mark: Callable[[], str]) -> None:
        """Compile the template. Raises TemplateError."""
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=["jinja2.ext.loopcontrols", _GenerationTag],
            autoescape=False,
        )
        environment.globals.update(tokenizer.edges, raise_exception=_refuse)
        environment.filters["tojson"] = _tojson
        try:
            self._template = environment.from_string(template)
        except jinja2.TemplateError as error:
            raise TemplateError(f"the model's chat template does not compile: {error}") from error
        self._tokenizer = tokenizer
        self._mark = mark
        self._support: ToolSupport | None = None
        """How the template writes function calls; None for templates that describe no tools, or in no usable format."""
        self._support = detect(self._example, self._controls) if "tools" in template else None

    @property
    def calls(self) -> CallFormat:
        """The format of function calls in prompts, and thus in answers."""
        return OWN if self._support is None else self._support.calls

    @property
    def describes_tools(self) -> bool:
        """Whether the template describes tools itself, rather than a text in the system message."""
        return self._support is not None

    def whole(
        self,
        messages: Sequence[Message],
        *,
        date: Callable[[str], str],
        answer: bool = True,
        tools: Sequence[Tool] = (),
        thinking: bool = False,
    ) -> list[int]:
        """Return the ids of a whole conversation, ready for an answer.

        Without `answer` they end with the last message's content and are a prefix of any follow-up. `thinking` is the
        template's option to reason before an answer. Raises TemplateError, RecursionError or MemoryError.
        """
        if self._support is None:
            messages, tools = calls_as_text(with_tools(messages, tools)), ()
        try:
            spans = self._render(messages, date, answer=answer, tools=tools, thinking=thinking)
        except (TemplateError, RecursionError):
            reduced = simplified(tools)
            if reduced == list(tools):
                raise
            spans = self._render(messages, date, answer=answer, tools=reduced, thinking=thinking)
        return self._tokenize_whole(spans)

    def follow_up(
        self,
        messages: Sequence[Message],
        *,
        date: Callable[[str], str],
        after: str = "assistant",
        answer: bool = True,
        thinking: bool = False,
    ) -> list[int]:
        """Return the ids to append after the last content token of a message with role `after`.

        They are the end of that message, then `messages`: the difference that `messages` make to a fixed example
        conversation. `answer`, `thinking` and errors are as for `whole`.
        """
        example: list[Message] = [{"role": "user", "content": "x"}] if after in ("assistant", "tool") else []
        if after == "tool":  # a template may merge consecutive tool results
            example.append({"role": "assistant", "content": "x"})
        own = self._mark()
        said = [*example, {"role": after, "content": own}, *messages]
        if self._support is None:
            said = calls_as_text(said)
        spans = self._render(said, date, answer=answer, thinking=thinking)
        last = next((i for i, span in enumerate(spans) if span.external and own in span.text), None)
        if last is None:
            raise TemplateError("it omits the answer from the conversation")
        return self._tokenize(spans[last + 1 :])

    def _render(
        self,
        messages: Sequence[Message],
        date: Callable[[str], str],
        *,
        answer: bool,
        tools: Sequence[Tool] = (),
        thinking: bool = False,
    ) -> list[Span]:
        marks = _Marks(self._mark())
        # Not None without tools: some templates iterate over it.
        given = {"tools": [hidden_tool(tool, marks.hide) for tool in tools]} if tools else {}
        try:
            rendered = self._template.render(
                messages=[_hidden(message, marks, self._support) for message in messages],
                add_generation_prompt=answer, enable_thinking=thinking, strftime_now=date, samovar_marks=marks, **given,
            )  # fmt: skip
        except (RecursionError, MemoryError):
            raise
        except Exception as error:
            raise TemplateError(str(error) or type(error).__name__) from error
        spans = list(marks.spans(rendered))
        if not answer:
            while spans and not spans[-1].external:
                spans.pop()
        return spans

    def _example(self, messages: Sequence[Message], tools: Sequence[Tool]) -> str:
        """Return the text of an example, in which calls are not converted to text. Raises ExampleError."""
        try:
            return "".join(span.text for span in self._render(messages, lambda _: "", answer=True, tools=tools))
        except (TemplateError, RecursionError, MemoryError) as error:
            raise ExampleError(str(error)) from error

    def _controls(self, text: str) -> list[tuple[str, int]]:
        """Return the control tokens in a text of the template, with their ids."""
        tokens = self._tokenizer.tokenize(text, special=True)
        return [(self._tokenizer.text(token), token) for token in tokens if self._tokenizer.is_control(token)]

    def _tokenize_whole(self, spans: Sequence[Span]) -> list[int]:
        """Return the ids of a whole prompt with BOS if required; empty for no spans."""
        if not spans:
            return []
        text = "" if spans[0].external else spans[0].text
        bos, rest = split_bos(text, self._tokenizer.leading_bos, self._tokenizer.edges.get("bos_token", ""))
        spans = spans if spans[0].external else [Span(rest, external=False), *spans[1:]]
        return bos + self._tokenize(spans)

    def _tokenize(self, spans: Sequence[Span]) -> list[int]:
        return [i for span in spans for i in self._tokenizer.tokenize(span.text, special=not span.external)]


def _hidden(message: Message, marks: _Marks, support: ToolSupport | None) -> Message:
    hidden = {**message, "content": marks.hide(message["content"])}
    if "tool_calls" in message:
        hidden["tool_calls"] = [hidden_call(call, marks.hide, support) for call in message["tool_calls"]]
    if "tool_call_id" in message:
        hidden["tool_call_id"] = call_id(message["tool_call_id"])
    return hidden


@jinja2.pass_context
def _tojson(
    context: jinja2.runtime.Context,
    value: Any,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
    ensure_ascii: bool = False,  # noqa: ARG001 - templates pass it; non-ASCII text is never escaped
) -> str:
    """Convert to JSON like transformers; Jinja's own `tojson` sorts keys and escapes for HTML."""
    marks: _Marks = context["samovar_marks"]
    return marks.dump(value, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


class _GenerationTag(Extension):
    """`{% generation %}`, with which some templates mark answers for training; renders its content unchanged."""

    tags = {"generation"}  # noqa: RUF012 - as jinja2 declares it

    def parse(self, parser: Parser) -> list[Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)
