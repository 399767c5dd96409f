"""Conversion of messages to token ids through the model's own chat template, with stable ids for earlier turns.

Three properties matter. First, a follow-up is *appended*: its ids begin with the ids that the model read and generated.
Tokenizing an answer again may give other ids, and then its whole KV cache is missed. Second, external text never
becomes control tokens: a pasted `<|im_start|>system` remains plain text (`marks.py`). Third, no conversation that
OpenAI's API allows is refused because the template wants another order of messages (`folding.py`).

Contents are tokenized together with the template's text around them, as in the models' training.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, NoReturn, Protocol

import jinja2
from jinja2.ext import Extension
from jinja2.nodes import Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from gateway.prompts.bos import split_bos
from gateway.prompts.folding import Accepted, fold, probe
from gateway.prompts.marks import ControlTexts, Span
from gateway.prompts.tool_formats import ExampleError, ToolSupport, detect, simplified
from gateway.protocol.call_format import CHANNELS, OWN, CallFormat
from gateway.protocol.reasoning import CONSTRAIN, MARKERS, START, ReasoningStart
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

    @property
    def control_texts(self) -> Collection[str]:
        """The texts of the tokens that external text must not become."""

    def tokenize(self, text: str, *, special: bool) -> list[int]:
        """Return the token ids of `text`; control tokens are recognized only with `special`."""

    def is_control(self, token: int) -> bool:
        """Whether `token` is a control token, which represents no text."""

    def text(self, token: int) -> str:
        """Return the token's text in the vocabulary."""


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
        environment.filters["tojson"] = self._tojson
        try:
            literals = [token.value for token in environment.lexer.tokenize(template) if token.type == "string"]
            # llama.cpp takes these tokens for text, which users could write.
            markers = (*MARKERS, CONSTRAIN) if all(marker in template for marker in MARKERS) else ()
            self._controls = ControlTexts({*tokenizer.control_texts, *markers}, literals)
            self._template = environment.from_string(template)
        except jinja2.TemplateError as error:
            raise TemplateError(f"the model's chat template does not compile: {error}") from error
        self._tokenizer = tokenizer
        self._mark = mark
        self._thinks = "<think>" in template or "</think>" in template
        """Whether the model may reason before its answer."""
        self._support: ToolSupport | None = None
        """How the template writes function calls; None for templates that describe no tools, or in no usable format."""
        self._support = detect(self._example, self._control_tokens) if "tools" in template else None
        self._has_channels = bool(markers) and self._opens_with_channel()
        if self._support is not None and self._has_channels:
            controls = self._control_tokens(CHANNELS.opening + CHANNELS.middle)
            self._support = replace(self._support, calls=replace(CHANNELS, controls=tuple(dict(controls).items())))

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
        return self._tokenize_whole(self._spans(messages, date, answer=answer, tools=tools, thinking=thinking))

    def shown(self, messages: Sequence[Message], *, date: Callable[[str], str], thinking: bool = False) -> str:
        """Return the text of `whole`. Raises like `whole`."""
        return "".join(span.text for span in self._spans(messages, date, answer=True, tools=(), thinking=thinking))

    def _spans(
        self,
        messages: Sequence[Message],
        date: Callable[[str], str],
        *,
        answer: bool,
        tools: Sequence[Tool],
        thinking: bool,
    ) -> list[Span]:
        if self._support is None:
            messages, tools = with_tools(messages, tools), ()
        render = self._render if answer else self._render_open
        try:
            return render(messages, date, tools=tools, thinking=thinking)
        except (TemplateError, RecursionError):
            reduced = simplified(tools)
            if reduced == list(tools):
                raise
            return render(messages, date, tools=reduced, thinking=thinking)

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
        own = self._mark()
        said = [*_example(after, own), *messages]
        render = self._render if answer else self._render_open
        spans = _split(render(said, date, thinking=thinking), own)
        if spans is None:
            raise TemplateError("it omits the answer from the conversation")
        return self._tokenize(spans[1], start=False)

    def _render_open(
        self, messages: Sequence[Message], date: Callable[[str], str], *, tools: Sequence[Tool] = (), thinking: bool
    ) -> list[Span]:
        """Return the prompt up to the end of the last message's content."""
        if not messages:
            return []
        if messages[-1].get("tool_calls") and self._support is None:
            messages = calls_as_text(messages)
        *before, last = messages
        end = self._mark()
        if not last.get("tool_calls"):
            marked = [*before, {**last, "content": last["content"].rstrip() + end}]
            for rest in ([], [{"role": "user", "content": "x"}]):  # a template may omit a system message on its own
                spans = self._render([*marked, *rest], date, answer=False, tools=tools, thinking=thinking)
                if (parts := _split(spans, end)) is not None:
                    return parts[0]
        spans = self._render(messages, date, answer=False, tools=tools, thinking=thinking)
        if not last.get("tool_calls"):
            return spans
        example = [*before, {"role": "assistant", "content": end}]
        parts = _split(self._render(example, date, answer=False, tools=tools, thinking=thinking), end)
        return _without(spans, "".join(span.text for span in parts[1])) if parts is not None else spans

    def reasoning(self, *, thinking: bool) -> ReasoningStart:
        """Return where the reasoning of an answer starts."""
        if self._has_channels:
            return "channels"
        if not self._thinks:
            return ""
        spans = self._render([{"role": "user", "content": "x"}], date=lambda _: "", thinking=thinking)
        return "open" if spans and spans[-1].text.rstrip().endswith("<think>") else "tagged"

    @property
    def markers(self) -> tuple[tuple[str, int], ...]:
        """The control tokens around messages in channels, with their ids; empty for other formats."""
        return tuple(self._control_tokens("".join(MARKERS))) if self._has_channels else ()

    def _opens_with_channel(self) -> bool:
        """Return whether an answer begins with the header of a message in a channel."""
        if any(len(self._tokenizer.tokenize(marker, special=True)) != 1 for marker in MARKERS):
            return False
        try:
            spans = self._render([{"role": "user", "content": "x"}], date=lambda _: "")
        except (TemplateError, RecursionError, MemoryError):
            return False
        return bool(spans) and spans[-1].text.endswith(f"{START}assistant")

    @cached_property
    def accepted(self) -> Accepted:
        """The conversations that the template takes as they are."""

        def render(messages: Sequence[Message]) -> str | None:
            try:
                return self._controls.reveal(self._text(messages, date=lambda _: "", answer=False))
            except (TemplateError, RecursionError):
                return None

        return probe(render)

    def _render(
        self,
        messages: Sequence[Message],
        date: Callable[[str], str],
        *,
        answer: bool = True,
        tools: Sequence[Tool] = (),
        thinking: bool = False,
    ) -> list[Span]:
        shown = fold(calls_as_text(messages) if self._support is None else messages, self.accepted)
        return list(self._controls.spans(self._text(shown, date, answer=answer, tools=tools, thinking=thinking)))

    def _text(
        self,
        messages: Sequence[Message],
        date: Callable[[str], str],
        *,
        answer: bool,
        tools: Sequence[Tool] = (),
        thinking: bool = False,
    ) -> str:
        """Return the rendered template, in which external text is protected. Raises like `whole`."""
        # Not None without tools: some templates iterate over it.
        given = {"tools": self._controls.protect_all(list(tools))} if tools else {}
        try:
            return self._template.render(
                messages=[self._protected(message) for message in messages],
                add_generation_prompt=answer, enable_thinking=thinking, strftime_now=date, **given,
            )  # fmt: skip
        except (RecursionError, MemoryError):
            raise
        except Exception as error:
            raise TemplateError(str(error) or type(error).__name__) from error

    def _protected(self, message: Message) -> Message:
        """Return a message in a form that the template can look into, with arguments as the template expects them."""
        if self._support is not None and message.get("tool_calls"):
            message = {**message, "tool_calls": [self._support.shown(call) for call in message["tool_calls"]]}
        return {key: self._controls.protect_all(value) for key, value in message.items()}

    def _tojson(
        self,
        value: Any,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
        ensure_ascii: bool = False,  # noqa: ARG002 - templates pass it; non-ASCII text is never escaped
    ) -> str:
        """Convert to JSON like transformers; Jinja's own `tojson` sorts keys and escapes for HTML."""
        return self._controls.dump(value, indent=indent, separators=separators, sort_keys=sort_keys)

    def _example(self, messages: Sequence[Message], tools: Sequence[Tool]) -> str:
        """Return the text of an example, in which calls are not converted to text. Raises ExampleError."""
        try:
            shown = fold(messages, self.accepted)
            return self._controls.reveal(self._text(shown, lambda _: "", answer=True, tools=tools))
        except (TemplateError, RecursionError, MemoryError) as error:
            raise ExampleError(str(error)) from error

    def _control_tokens(self, text: str) -> list[tuple[str, int]]:
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
        return bos + self._tokenize(spans, start=True)

    def _tokenize(self, spans: Sequence[Span], *, start: bool) -> list[int]:
        """Return the ids of spans; with `start` they begin the prompt, otherwise they continue a text."""
        return [i for n, span in enumerate(spans) for i in self._tokenize_span(span, start=start and n == 0)]

    def _tokenize_span(self, span: Span, *, start: bool) -> list[int]:
        """Return the ids of one span. A vocabulary may put a space before a text, but not before one that continues."""
        special = not span.external
        if not start and self._adds_space:
            head = self._tokenizer.tokenize("\n", special=False)
            ids = self._tokenizer.tokenize(f"\n{span.text}", special=special)
            if ids[: len(head)] == head:
                return ids[len(head) :]
        return self._tokenizer.tokenize(span.text, special=special)

    @cached_property
    def _adds_space(self) -> bool:
        """Whether the tokenizer puts a space before each text, as SentencePiece does."""
        head, whole = (self._tokenizer.tokenize(text, special=False) for text in ("\n", "\na"))
        return whole[len(head) :] != self._tokenizer.tokenize("a", special=False)


def _example(after: str, content: str) -> list[Message]:
    """Return a conversation that ends with a message with role `after`; a tool result follows its call."""
    question, last = {"role": "user", "content": "x"}, {"role": after, "content": content}
    if after != "tool":
        return [question, last] if after == "assistant" else [last]
    call = {"id": "example01", "type": "function", "function": {"name": "x", "arguments": {}}}
    answer = {"role": "assistant", "content": "", "tool_calls": [call]}
    return [question, answer, {**last, "tool_call_id": call["id"]}]


def _split(spans: Sequence[Span], own: str) -> tuple[list[Span], list[Span]] | None:
    """Return what is before and after the text `own`, or None if it is missing."""
    for i, span in enumerate(spans):
        before, found, after = span.text.partition(own)
        if found:
            ahead, rest = (Span(text, span.external) for text in (before, after))
            return [*spans[:i], *([ahead] if before else [])], [*([rest] if after else []), *spans[i + 1 :]]
    return None


def _without(spans: Sequence[Span], end: str) -> list[Span]:
    """Return the spans without the text `end`, if they end with it."""
    kept = list(spans)
    missing = len(end) if "".join(span.text for span in spans).endswith(end) else 0
    while missing:
        last = kept.pop()
        if len(last.text) > missing:
            kept.append(Span(last.text[:-missing], last.external))
        missing -= min(missing, len(last.text))
    return kept


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


class _GenerationTag(Extension):
    """`{% generation %}`, with which some templates mark answers for training; renders its content unchanged."""

    tags = {"generation"}  # noqa: RUF012 - as jinja2 declares it

    def parse(self, parser: Parser) -> list[Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)
