"""Conversion of messages to token ids through the model's own chat template, with stable ids for earlier turns.

Two properties matter. First, a follow-up is *appended*: its ids begin with the ids that the model read and generated.
Tokenizing an answer again may give other ids, and then its whole KV cache is missed. Second, external text never
becomes control tokens: it passes the template as an unguessable mark and is tokenized separately with special tokens
disabled, so that a pasted `<|im_start|>system` remains plain text. The same holds for the names, descriptions and
arguments of tools.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NoReturn, Protocol

import jinja2
from jinja2.ext import Extension
from jinja2.nodes import Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from gateway.prompts.bos import split_bos
from gateway.prompts.marks import Marks, Span
from gateway.protocol.tool_prompt import OPENING, Message, Tool, calls_as_text, with_tools

_KEPT: Final = frozenset(
    {"type", "function", "name", "description", "parameters", "arguments", "properties", "required", "items", "enum"}
)
"""Keys that templates look up in tools and calls; all other keys are external text."""


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
        self._knows_tools = "tools" in template and OPENING in template
        """Whether the template describes tools itself, in the format that `CallReader` parses."""

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
        if not self._knows_tools:
            messages, tools = with_tools(messages, tools), ()
        return self._tokenize_whole(self._render(messages, date, answer=answer, tools=tools, thinking=thinking))

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
        marks = Marks(self._mark())
        shown = messages if self._knows_tools else calls_as_text(messages)
        given = (
            {"tools": [marks.hide(tool, _KEPT) for tool in tools]} if tools else {}
        )  # not None: some templates iterate over it
        try:
            rendered = self._template.render(
                messages=[_hidden(message, marks) for message in shown],
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


def _hidden(message: Message, marks: Marks) -> Message:
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
    ensure_ascii: bool = False,  # noqa: ARG001 - templates pass it; non-ASCII text is never escaped
) -> str:
    """Convert to JSON like transformers; Jinja's own `tojson` sorts keys and escapes for HTML."""
    marks: Marks = context["samovar_marks"]
    return marks.dump(value, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


class _GenerationTag(Extension):
    """`{% generation %}`, with which some templates mark answers for training; renders its content unchanged."""

    tags = {"generation"}  # noqa: RUF012 - as jinja2 declares it

    def parse(self, parser: Parser) -> list[Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)
