"""Anthropic's Messages API without a network: the events and whole messages of answers, and errors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from anthropic.types import Message, RawMessageStreamEvent
from pydantic import TypeAdapter

from gateway.errors import (
    ApiError,
    ContextLengthExceededError,
    EngineUnavailableError,
    InternalError,
    InvalidApiKeyError,
    InvalidRequestError,
    MessageTooLargeError,
    ModelNotFoundError,
    QueueFullError,
    QueueTimeoutError,
    RateLimitExceededError,
    StoreUnavailableError,
)
from gateway.prompts.constraints import form
from gateway.protocol.answer import Answer
from gateway.protocol.anthropic_events import MessageAnswer, error_body, error_status
from gateway.protocol.detokenizer import Detokenizer
from gateway.protocol.events import Event, TerminalEvent, Usage
from gateway.protocol.output_items import MessageItem
from gateway.protocol.requests import ResponseCreate
from gateway.protocol.response_events import Ending, ResponseEvents
from tests.support.anthropic_requests import TOOL, read
from tests.support.events import flat

EVENT: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "北京"}}\n</tool_call>'
PROMPT = Usage(24, 0, 0)


def events(text: str, step: int, *, whole: bool = True) -> list[Event]:
    """The events of an answer that ends by itself, or with `whole` false at its token limit."""
    request = read(tools=[TOOL])
    made = ResponseEvents(
        request, response_id="resp_1", model="m", clock=lambda: 1.5, temperature=0.7, top_p=0.8, max_output_tokens=9
    )
    constraint = form(request.functions, request.choice, request.format, request.error_paths)
    answer = Answer(made, form=constraint, new_id=lambda prefix: f"{prefix}_1")
    sent: list[Event] = [made.created(), made.queued(1, 2.0), made.in_progress(), *answer.begin()]
    for start in range(0, len(text), step):
        sent += answer.feed(text[start : start + step])
    usage = Usage(24, 20, 3)
    return [
        *sent,
        *answer.finish(),
        *flat(made.completed(usage) if whole else made.incomplete(usage, "max_output_tokens")),
    ]


def last(ending: Ending) -> TerminalEvent:
    """The terminal event of an ending."""
    return ending[1]


def ended(request: ResponseCreate | None = None) -> ResponseEvents:
    """The builder of a response's events, without any output."""
    return ResponseEvents(
        request or read(), response_id="resp_1", model="m", clock=lambda: 1.5, temperature=0.7, top_p=0.8,
        max_output_tokens=9,
    )  # fmt: skip


def streamed(sent: Sequence[Event]) -> list[dict[str, Any]]:
    """The stream's events as a client decodes them, each of which has the type of the official client."""
    answer = MessageAnswer("resp_1", model="m", usage=PROMPT)
    found: list[dict[str, Any]] = msgspec.json.decode(
        msgspec.json.encode([shown for event in sent for shown in answer.feed(event)])
    )
    for event in found:
        EVENT.validate_python(event, strict=True)
    return found


def whole(event: Event) -> Message:
    assert isinstance(event, TerminalEvent)
    return Message.model_validate(MessageAnswer("resp_1", model="m", usage=PROMPT).whole(event), strict=True)


def test_a_text_and_a_call_are_two_blocks() -> None:
    usage = {"cache_creation_input_tokens": 0, "cache_read_input_tokens": 20, "input_tokens": 4, "output_tokens": 3}
    start = {"cache_creation_input_tokens": 0, "cache_read_input_tokens": 0, "input_tokens": 24, "output_tokens": 0}
    ending = {"stop_reason": None, "stop_sequence": None}
    message: dict[str, Any] = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "m",
        "content": [],
        **ending,
    }
    call = {"type": "tool_use", "id": "toolu_1", "name": "get_weather", "input": {}}
    assert streamed(events(f"I look.\n{CALL}", 1000)) == [
        {"type": "message_start", "message": {**message, "usage": start}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "I look.\n"}},
        {"type": "content_block_stop", "index": 0},
        {"type": "content_block_start", "index": 1, "content_block": call},
        {
            "type": "content_block_delta",
            "index": 1,
            "delta": {"type": "input_json_delta", "partial_json": '{"city": "北京"}'},
        },
        {"type": "content_block_stop", "index": 1},
        {"type": "message_delta", "delta": {"stop_reason": "tool_use", "stop_sequence": None}, "usage": usage},
        {"type": "message_stop"},
    ]


@pytest.mark.parametrize("step", [1, 7, 1000])
@pytest.mark.parametrize("text", ["Hello.", f"I look.\n{CALL}", CALL, ""])
def test_a_stream_and_a_whole_message_have_the_same_content(text: str, step: int) -> None:
    sent = events(text, step)
    found, message = streamed(sent), whole(sent[-1])
    texts = [event["delta"]["text"] for event in found if event.get("delta", {}).get("type") == "text_delta"]
    json = [e["delta"]["partial_json"] for e in found if e.get("delta", {}).get("type") == "input_json_delta"]
    assert "".join(texts) == "".join(block.text for block in message.content if block.type == "text")
    calls = [block for block in message.content if block.type == "tool_use"]
    assert [msgspec.json.decode("".join(json))] * len(calls) == [call.input for call in calls] if json else not calls
    starts = [event["content_block"]["type"] for event in found if event["type"] == "content_block_start"]
    assert starts == [block.type for block in message.content]
    [delta] = [event for event in found if event["type"] == "message_delta"]
    assert delta["delta"]["stop_reason"] == message.stop_reason == ("tool_use" if CALL in text else "end_turn")
    assert delta["usage"] == message.usage.model_dump(exclude_unset=True)


def test_a_call_that_the_token_limit_cuts_off_is_not_in_a_whole_message() -> None:
    sent = events(CALL[:-40], 5, whole=False)
    message = whole(sent[-1])
    assert (message.content, message.stop_reason) == ([], "max_tokens")
    assert streamed(sent)[-2]["delta"]["stop_reason"] == "max_tokens"


@pytest.mark.parametrize("text", ["a stop b", "stop", "st stop stop"])
def test_the_stop_sequence_that_ended_the_answer_is_named(text: str) -> None:
    detokenizer = Detokenizer(lambda token: bytes([token]), ("never", "stop", "top"))
    shown = detokenizer.feed(list(text.encode()))
    assert (shown, detokenizer.stop) == (text.partition("stop")[0], "stop")
    made = ended()
    made.open(MessageItem("msg_1"))
    ending = last(made.completed(Usage(1, 0, 1), detokenizer.stop))
    assert (whole(ending).stop_reason, whole(ending).stop_sequence) == ("stop_sequence", "stop")
    delta, _ = streamed([ending])
    assert delta["delta"] == {"stop_reason": "stop_sequence", "stop_sequence": "stop"}


def test_a_prompt_that_was_only_encoded_has_no_content() -> None:
    message = whole(last(ended().completed(Usage(5, 4, 0))))
    assert (message.content, message.stop_reason, message.usage.cache_read_input_tokens) == ([], "max_tokens", 4)


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (InvalidRequestError("no"), 400, "invalid_request_error"),
        (ContextLengthExceededError("no"), 400, "invalid_request_error"),
        (InvalidApiKeyError("no"), 401, "authentication_error"),
        (ModelNotFoundError("no"), 404, "not_found_error"),
        (MessageTooLargeError("no"), 413, "request_too_large"),
        (RateLimitExceededError("no", 1, limit="tokens_per_day"), 429, "rate_limit_error"),
        (InternalError("req_1"), 500, "api_error"),
        (StoreUnavailableError("no"), 503, "api_error"),
        (QueueFullError("no"), 529, "overloaded_error"),
        (QueueTimeoutError("no"), 529, "overloaded_error"),
        (EngineUnavailableError("no"), 529, "overloaded_error"),
    ],
)
def test_each_error_has_the_type_and_the_status_of_anthropics(error: ApiError, status: int, kind: str) -> None:
    body = error_body(error, "req_1")
    assert (error_status(error), body["type"], body["error"]["type"]) == (status, "error", kind)
    assert (error.message in body["error"]["message"], body["request_id"]) == (True, "req_1")


def test_a_refusal_has_the_type_of_its_status() -> None:
    assert error_body(InvalidRequestError("no"), "req_1", status=403)["error"]["type"] == "permission_error"


def test_a_prompt_that_is_too_long_is_named_in_the_words_that_claude_code_knows() -> None:
    assert error_body(ContextLengthExceededError("no"), "req_1")["error"]["message"] == "prompt is too long: no"
