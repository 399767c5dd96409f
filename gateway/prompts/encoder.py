"""Computes a request's prompt: the work of a prompt worker, done in the calling process."""

from __future__ import annotations

import array
import bisect
import os
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from engine import Vocabulary, common_prefix
from gateway.errors import ApiError, ContextLengthExceededError, InvalidRequestError
from gateway.prompts.bos import split_bos
from gateway.prompts.chat_template import Prompt, TemplateError
from gateway.prompts.constraints import form
from gateway.prompts.messages import Encode, Encoded, Job, OperatorPrefix, Refused, Tokenize
from gateway.protocol.tool_prompt import Message, dump
from gateway.protocol.tools import AnyFormat, GrammarFormat, JsonObject, JsonSchema, OutputConstraint

UNSUSPICIOUS: Final = 16
"""Bytes per token up to which a text is tokenized without checking the longest token. Ordinary text has 2 to 6."""


class Encoder:
    """Renders templates, tokenizes and builds grammars for one model. Not thread-safe."""

    def __init__(self, vocabulary: Vocabulary, template: str, *, instructions: str) -> None:
        """`instructions` are the operator's, from the setting `instructions`. Raises TemplateError."""
        self._vocabulary = vocabulary
        self._instructions = instructions
        self._tokenizer = _CachedTokenizer(vocabulary)
        self._prompt = Prompt(template, self._tokenizer, mark=lambda: os.urandom(16).hex())
        self._longest: int | None = None

    def run(self, job: Job) -> Encoded | Refused:
        """Execute one job. An invalid request returns `Refused`; any other exception is an internal error."""
        try:
            return self._execute(job)
        except ApiError as error:
            return Refused(error.code, error.message, error.param)
        except TemplateError as error:
            return _refused(job, f"the model's chat template rejects these messages: {error}")
        except RecursionError:
            return _refused(job, "the request is nested too deeply")
        except MemoryError:
            return _refused(job, "the prompt takes too much memory; shorten the request")
        finally:
            self._tokenizer.clear()

    def _execute(self, job: Job) -> Encoded:
        match job:
            case Encode():
                return self._encode(job)
            case Tokenize():
                return Encoded(_packed(self._tokenize(job)))
            case OperatorPrefix():
                return Encoded(b"", _packed(self._operator(job.began)))

    def _tokenize(self, job: Tokenize) -> list[int]:
        vocabulary, bos, text = self._vocabulary, list[int](), job.text
        if job.bos:
            bos, text = split_bos(text, vocabulary.leading_bos, vocabulary.edges.get("bos_token", ""))
        return bos + vocabulary.tokenize(text, special=job.special)

    def _encode(self, job: Encode) -> Encoded:
        answer_form = self._form(job)
        if job.after:
            ids = self._prompt.follow_up(
                job.messages, date=_clock(job.began), after=job.after, answer=job.answer, thinking=job.thinking
            )
            return self._encoded(ids, job, answer_form)
        first = self._system(job)
        if not job.limit or not self._is_too_long(job.messages, job.limit):
            ids = self._whole(job, [*first, *job.messages])
            if not (job.truncate and len(ids) >= job.limit > 0):
                return self._encoded(ids, job, answer_form)
        elif not job.truncate:
            raise ContextLengthExceededError(
                f"the prompt is too long for any tokenization: the limit is {job.limit} tokens, including at least one "
                'for the answer; shorten it, or set `truncation: "auto"` to drop the oldest turns',
                param=job.error_paths.input,
            )
        turn, ids = self._truncated(job, first)
        return self._encoded(ids, job, answer_form, turn)

    def _form(self, job: Encode) -> OutputConstraint:
        reasoning = self._prompt.reasoning(thinking=job.thinking) if job.answer else ""
        markers = self._prompt.markers if job.answer else ()
        return form(job.tools, job.choice, job.format, job.error_paths, self._prompt.calls, reasoning, markers)

    def _encoded(self, ids: list[int], job: Encode, answer_form: OutputConstraint, turn: int = 0) -> Encoded:
        return Encoded(_packed(ids), _packed(self._operator(job.began)), turn, answer_form)

    def _system(self, job: Encode) -> list[Message]:
        parts = (self._instructions, job.instructions, _description(job.format))
        system = "\n\n".join(text for text in parts if text)
        return [Message(role="system", content=system)] if system else []

    def _whole(self, job: Encode, messages: Sequence[Message]) -> list[int]:
        tools = [tool.shown for tool in job.tools]
        return self._prompt.whole(
            messages, date=_clock(job.began), answer=job.answer, tools=tools, thinking=job.thinking
        )

    def _truncated(self, job: Encode, first: list[Message]) -> tuple[int, list[int]]:
        """Drop the oldest turns until half of the limit is free, so that later turns can be appended."""
        starts = [i for i, message in enumerate(job.messages) if message["role"] == "user"] or [0]
        kept = [*first, *(message for message in job.messages[: starts[0]] if message["role"] == "system")]

        def fits(start: int) -> bool:
            rest, target = job.messages[start:], job.limit // 2
            return not self._is_too_long(rest, target) and len(self._whole(job, [*kept, *rest])) <= target

        turn = min(bisect.bisect_left(starts, True, key=fits), len(starts) - 1)
        rest = job.messages[starts[turn] :]
        if self._is_too_long(rest, job.limit):
            raise ContextLengthExceededError(
                f"the last turn alone is too long: the limit is {job.limit} tokens, including at least one for the "
                "answer; shorten it",
                param=job.error_paths.input,
            )
        return turn, self._whole(job, [*kept, *rest])

    def _is_too_long(self, messages: Sequence[Message], limit: int) -> bool:
        """Return whether the messages' text has more bytes than `limit` tokens can represent."""
        size = sum(len(message["content"].encode()) for message in messages)
        return size > limit * UNSUSPICIOUS and size > limit * self._longest_token()

    def _longest_token(self) -> float:
        if self._longest is None:
            self._longest = self._vocabulary.longest_piece()
        return self._longest or float("inf")

    def _operator(self, began: int) -> list[int]:
        """Return the ids that depend on the operator's instructions alone: the common prefix of two example prompts."""
        if not self._instructions:
            return []
        example = [Message(role="user", content="x")]
        systems = (self._instructions, f"{self._instructions}\n\nx")
        one, other = (
            self._prompt.whole([Message(role="system", content=system), *example], date=_clock(began))
            for system in systems
        )
        return one[: common_prefix(one, other)]


class _CachedTokenizer:
    """A vocabulary with a cache for the texts of one job, since truncation tries many suffixes of a conversation."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._known: dict[tuple[str, bool], list[int]] = {}

    @property
    def edges(self) -> dict[str, str]:
        return self._vocabulary.edges

    @property
    def leading_bos(self) -> int | None:
        return self._vocabulary.leading_bos

    @property
    def control_texts(self) -> frozenset[str]:
        return self._vocabulary.control_texts

    def tokenize(self, text: str, *, special: bool) -> list[int]:
        key = (text, special)
        if key not in self._known:
            self._known[key] = self._vocabulary.tokenize(text, special=special)
        return self._known[key]

    def is_control(self, token: int) -> bool:
        return self._vocabulary.is_control(token)

    def text(self, token: int) -> str:
        return self._vocabulary.text(token)

    def clear(self) -> None:
        self._known.clear()


def _refused(job: Job, message: str) -> Refused:
    return Refused(InvalidRequestError.code, message, job.error_paths.input if isinstance(job, Encode) else None)


def _description(wanted: AnyFormat) -> str:
    """Return the instruction that describes the format enforced by the grammar, so that the model can follow it."""
    if isinstance(wanted, GrammarFormat):
        schema: Any = wanted.definition if wanted.syntax == "json" else None
    else:
        schema = wanted.schema if isinstance(wanted, JsonSchema) else None
    if schema is not None:
        return f"Answer with JSON that fits this schema, and nothing else:\n{dump(schema)}"
    return "Answer with a JSON object, and nothing else." if isinstance(wanted, JsonObject) else ""


def _packed(ids: Sequence[int]) -> bytes:
    return array.array("i", ids).tobytes()


def _clock(began: int) -> Callable[[str], str]:
    """Return the template's clock, fixed for a conversation, because its first tokens must not change at midnight."""
    return lambda pattern: time.strftime(pattern, time.localtime(began))
