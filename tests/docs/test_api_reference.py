"""docs/api.md is complete and true: routes, fields, events, errors and metrics are those of the code, and no others."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from starlette.routing import Mount, Route, WebSocketRoute

from gateway import errors
from gateway.app import build
from gateway.config.settings import Settings, load
from gateway.conversations import unstored
from gateway.errors import (
    AdminKeyNeededError,
    ApiError,
    ConnectionLimitError,
    ConversationNotFoundError,
    ConversationsNeedKeysError,
    ItemNotFoundError,
    NoUsersError,
    QueueTimeoutError,
    RateLimitExceededError,
    ResponseNotFoundError,
    UserNotFoundError,
)
from gateway.prompts.messages import Configuration
from gateway.protocol import lanes, requests, steering, tools, values
from gateway.protocol.anthropic_body import MessagesCreate
from gateway.protocol.anthropic_events import error_body, error_status
from gateway.protocol.chat import ChatCreate
from gateway.protocol.events import Event, KeepAlive, Usage, refusal
from gateway.protocol.hints import INTERNAL
from gateway.protocol.log import EventLog
from gateway.protocol.ollama import ChatFields, GenerateFields
from gateway.protocol.output_items import CallItem, MessageItem, ReasoningItem
from gateway.protocol.requests import ResponseCreate, convert, parse
from gateway.protocol.response_events import ResponseEvents
from gateway.protocol.steering import ResponseSteer, Steer, SteerError
from gateway.protocol.text import TextCreate
from gateway.transport import bodies
from gateway.transport.openapi import document
from tests import ROOT
from tests.process.test_metrics import PROMISED
from tests.support.events import flat, plain

PAGE = (ROOT / "docs" / "api.md").read_text()
CLIENT_MESSAGES = {"response.create", "response.cancel", "response.resume", "response.steer"}
OBJECTS = {"response.input_tokens", "response.incomplete_details", "response.error"}
"""What the page names that looks like an event's type: kinds of objects, and fields."""


LIMITS: dict[str, tuple[float, ...]] = {
    "one message or body": (requests.MAX_MESSAGE >> 20,),
    "time to send a body": (bodies.BODY_SECONDS,),
    "items of one request, messages of a chat completion": (requests.MAX_ITEMS,),
    "tools": (tools.MAX_TOOLS,),
    "JSON values in all schemas of a request; nesting": (values.MAX_VALUES, values.MAX_NESTED),
    "running responses of one connection": (lanes.ACTIVE,),
    "named lanes of one connection in use": (lanes.NAMED,),
    "requests of one connection that wait for their lane": (lanes.PENDING,),
    "bytes of those: of one connection, of one user, of all": (
        lanes.CONNECTION_BYTES >> 20,
        lanes.OWNER_BYTES >> 20,
        lanes.GATEWAY_BYTES >> 20,
    ),
    "`store: false` responses that one connection can continue": (unstored.MAX_TURNS,),
    "prompt preparation of one request": (
        Configuration(model="", template="").processor_seconds,
        Configuration(model="", template="").seconds,
        Configuration(model="", template="").memory >> 30,
    ),
}
"""The numbers of rows in the table of limits, in the unit of the row."""


def section(heading: str) -> str:
    """The part of the page under a heading, up to the next one of its level or above."""
    level = len(heading) - len(heading.lstrip("#"))
    found = re.search(rf"^{re.escape(heading)}$(.*?)(?=^#{{1,{level}}} |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert found, f"there is no heading {heading}"
    return found[1]


def rows(text: str) -> list[list[str]]:
    """The cells of all tables in a text, headings left out."""
    lines = [line for line in text.splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in line.strip("|").split(" |")] for line in lines]


def names(cell: str) -> list[str]:
    """What a cell has in backticks."""
    return re.findall(r"`([^`]+)`", cell)


def examples(text: str) -> list[dict[str, Any]]:
    """The JSON blocks of a text."""
    return [json.loads(block) for block in re.findall(r"^```json\n(.*?)^```", text, re.MULTILINE | re.DOTALL)]


def constants(folder: str) -> Iterator[str]:
    """All string literals in the modules of a folder."""
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def error_classes() -> list[type[ApiError]]:
    """Every class of gateway/errors.py that a client can meet."""
    return [found for found in vars(errors).values() if isinstance(found, type) and issubclass(found, ApiError)]


def event_types() -> set[str]:
    """Types that gateway/protocol writes into events."""
    found = {text for text in constants("gateway/protocol") if re.fullmatch(r"response(\.[a-z_]+)+", text)}
    return (found - CLIENT_MESSAGES) | {"error", KeepAlive().type}


def numbered(event: Event) -> Event:
    """An event as the log of a response numbers it."""
    log = EventLog()
    log.append(event)
    found = log.after(-1)
    assert found is not None
    return found


def emitted() -> dict[str, dict[str, Any]]:
    """One event of each type, made by the code that makes them."""
    events = ResponseEvents(
        ResponseCreate(input="Hi"),
        response_id="resp_1",
        model="m",
        clock=lambda: 0.0,
        ignored=["user"],
        temperature=0.7,
        top_p=0.8,
        max_output_tokens=1,
    )
    made: list[Event] = [events.created(), events.queued(1, 1.0), KeepAlive(), events.in_progress()]
    made += [*events.open(MessageItem("msg_1")), events.delta("x"), *events.close()]
    made += [*events.open(ReasoningItem("rs_1")), events.delta("x"), *events.close()]
    made += [*events.open(CallItem("fc_1", "call_1", "f")), events.delta("{}")]
    usage = Usage(1, 0, 1)
    for ending in (
        events.completed(usage),
        events.incomplete(usage, "steered"),
        events.failed(QueueTimeoutError("late")),
    ):
        made += flat(ending)
    message = {"previous_response_id": "resp_1", "input": "x"}
    steer = Steer("steer_1", convert(message, ResponseSteer))
    made.append(steering.accepted(steer))
    unlogged = [
        steering.pending(steer, [], number=1),
        steering.failed(SteerError("response_not_found", "none"), message, number=0),
        refusal(ApiError("no"), request_id="req_1", stream_id="a"),
    ]
    return {event.type: plain(event) for event in [*map(numbered, made), *unlogged]}


async def test_every_route_is_described_and_no_other(tmp_path: Path, tiny_model: Path) -> None:
    app, responses = build(load({"model": str(tiny_model), "state_dir": str(tmp_path)}))
    served = set()
    for route in app.routes:
        match route:
            case WebSocketRoute():
                served.add(f"GET {route.path}")
            case Route():
                served |= {f"{method} {route.path_format}" for method in (route.methods or set()) - {"HEAD"}}
            case Mount():
                assert f"`GET {route.path}/…`" in PAGE
    responses.services.sessions.close()
    await responses.services.registry.close()
    assert set(re.findall(r"^### `([A-Z]+ /\S*)`", section("## Routes"), re.MULTILINE)) == served


@pytest.mark.parametrize(
    ("heading", "request_type"),
    [
        ("## Fields of a request", ResponseCreate),
        ("## Chat completions", ChatCreate),
        ("## Completions", TextCreate),
        ("## Messages (Anthropic)", MessagesCreate),
    ],
)
def test_every_field_of_a_request_is_described_and_no_other(heading: str, request_type: type[msgspec.Struct]) -> None:
    table = re.split(r"^(?:###|Accepted) ", section(heading), maxsplit=1, flags=re.MULTILINE)[0]
    documented = {name for row in rows(table) for name in names(row[0])}
    assert documented == {field.encode_name for field in msgspec.structs.fields(request_type)} - INTERNAL


def test_every_field_of_ollamas_api_is_described_and_no_other() -> None:
    table = section("## Ollama's API").split("\n### ")[0]
    told = {name for row in rows(table) for name in names(row[0])}
    requests_ = (ChatFields, GenerateFields)
    assert told == {field.encode_name for kind in requests_ for field in msgspec.structs.fields(kind)}


def test_every_event_has_a_section_and_nothing_else_is_called_one() -> None:
    documented = set(re.findall(r"^#### `(\S+)`$", section("### Server events"), re.MULTILINE))
    assert documented == event_types()
    named = {match.rstrip(".") for match in re.findall(r"\bresponse\.[a-z_.]+", PAGE)}
    assert named - documented - CLIENT_MESSAGES <= OBJECTS
    assert documented >= {"response.completed", "response.incomplete", "response.failed"}


def test_the_examples_of_events_have_the_fields_that_events_have() -> None:
    made = emitted()
    assert made.keys() == event_types()
    for kind, event in made.items():
        [example, *_] = examples(section(f"#### `{kind}`"))
        assert example.keys() == event.keys(), kind
        assert example["type"] == kind
        if "response" in example:
            assert example["response"].keys() <= event["response"].keys(), kind
        if "item" in example and example["item"]["type"] == event["item"]["type"]:
            assert example["item"].keys() == event["item"].keys(), kind


def test_the_response_object_has_the_fields_that_responses_have() -> None:
    [example] = examples(section("## The response object"))
    response = emitted()["response.completed"]["response"]
    assert example.keys() == response.keys()
    assert example["usage"].keys() == response["usage"].keys()


@pytest.mark.parametrize("kind", sorted(CLIENT_MESSAGES))
def test_the_examples_of_client_messages_are_accepted(kind: str) -> None:
    found = examples(section(f"#### `{kind}`"))
    assert found
    for message in found:
        assert message["type"] == kind
        if kind == "response.steer":
            convert(message, ResponseSteer)
        else:
            parse(json.dumps(message))


def test_every_error_code_is_described_with_its_status_and_type_and_no_other() -> None:
    documented = {names(row[0])[0]: row for row in rows(section("## Errors"))}
    assert documented.keys() == {error.code for error in error_classes()}
    for error in error_classes():
        _, status, kind, *rest = documented[error.code]
        assert str(error.status) in re.findall(r"\d+", status), error
        assert names(kind) == [error.type], error
        assert all(rest), error


def test_every_code_is_described_with_its_type_and_status_in_anthropics_form() -> None:
    told = {names(row[0])[0]: row for row in rows(section("### Messages and their errors"))}
    elsewhere = {
        ResponseNotFoundError,
        ItemNotFoundError,
        ConnectionLimitError,
        ConversationNotFoundError,
        ConversationsNeedKeysError,
        AdminKeyNeededError,
        NoUsersError,
        UserNotFoundError,
    }  # errors of the Responses, Conversations and admin APIs and of sockets
    for error in set(error_classes()) - elsewhere:
        made = error("no", 1, limit="tokens_per_day") if error is RateLimitExceededError else error("no")
        _, status, codes = told[error_body(made, "req_1")["error"]["type"]]
        assert str(error_status(made)) in re.findall(r"\d+", status), error
        assert error_status(made) == 400 or error.code in names(codes), error


def test_every_code_of_a_steering_failure_is_described_and_no_other() -> None:
    raised = {
        node.args[0].value
        for folder in ("protocol", "transport")
        for path in (ROOT / "gateway" / folder).glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) == "SteerError"
        and isinstance(node.args[0], ast.Constant)
    }
    assert {names(row[0])[0] for row in rows(section("### Steering"))} == raised


def test_every_metric_is_described_with_its_type_and_labels_and_no_other() -> None:
    documented = {}
    for metric, kind, labels in rows(section("## Metrics")):
        own = set(names(re.sub(r"\([^)]*\)|;.*", "", labels)))
        documented[names(metric)[0]] = (kind, own)
    assert documented == PROMISED


def test_the_limits_are_those_of_the_code() -> None:
    lines = [line.strip("|").split(" | ") for line in section("## Limits").splitlines() if line.startswith("| ")]
    table = {row[0].strip(): row[1] for row in lines}
    documented = {row: tuple(float(n.replace(" ", "")) for n in re.findall(r"\d[\d ]*", table[row])) for row in LIMITS}
    assert documented == LIMITS


def test_the_limits_that_are_settings_name_their_defaults() -> None:
    found = re.findall(r"`([a-z_]+)` \(([\d ]+)(?: s)?\)", section("## Limits"))
    assert len(found) > 5
    for name, value in found:
        assert Settings.model_fields[name].default == int(value.replace(" ", "")), name


def test_the_openapi_document_points_to_this_page() -> None:
    assert (ROOT / document()["externalDocs"]["url"]).read_text() == PAGE
