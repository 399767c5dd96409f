"""The HTTP API as an OpenAPI 3.1 document: request bodies from the structs that check them, so that the two agree."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.metadata import version
from typing import Any, Final

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from gateway import errors
from gateway.errors import ApiError
from gateway.protocol.chat import ChatCreate
from gateway.protocol.requests import ResponseCreate
from gateway.transport.http import List, Retrieve

Json = dict[str, Any]
REFERENCE: Final = "#/components/schemas/"
STREAMABLE: Final = {"stream": {"type": ["boolean", "null"], "description": "answer as server-sent events"}}
_ID: Final = {
    "name": "id",
    "in": "path",
    "required": True,
    "schema": {"type": "string", "pattern": "^resp_[0-9a-f]{32}$"},
}


def document() -> Json:
    """The whole document."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Samovar",
            "version": version("samovar"),
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
            "description": "OpenAI's Responses API and chat completions, as far as a text model can serve them. The "
            "main door is the WebSocket mode of `GET /v1/responses`, which this document cannot describe: see the "
            "contract in the documentation.",
        },
        "paths": _paths(),
        "components": {
            "schemas": _schemas(),
            "headers": {
                "RequestId": {
                    "description": "by which the request is found in the log",
                    "required": True,
                    "schema": {"type": "string", "pattern": "^req_[0-9a-f]{32}$"},
                }
            },
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer", "description": "`smv_` and 43 characters"}},
        },
    }


async def published(_: Request) -> Response:
    """The route."""
    return JSONResponse(document())


def _paths() -> Json:
    one, streamed = "/v1/responses/{id}", _ok("Response", stream=True)
    return {
        "/v1/responses": {"post": _operation("Answer", streamed, body="ResponseCreate")},
        "/v1/responses/input_tokens": {
            "post": _operation("Count the tokens of a prompt", _ok("InputTokens"), body="ResponseCreate")
        },
        "/v1/chat/completions": {
            "post": _operation("Answer a stateless client", _ok("Completion", stream=True), body="ChatCreate")
        },
        one: {
            "get": _operation("What was answered, or its events", streamed, _ID, *_query(Retrieve)),
            "delete": _operation("Delete an answer and what was said to get it", _ok("Deleted"), _ID),
        },
        f"{one}/cancel": {"post": _operation("End an answer that is being given", _ok("Response"), _ID)},
        f"{one}/input_items": {"get": _operation("What the model was shown", _ok("Items"), _ID, *_query(List))},
        "/v1/models": {"get": _operation("The model that is served", _ok("Models"))},
        "/healthz": {"get": _operation("Whether the gateway lives", _ok("Health"), closed=False)},
        "/readyz": {"get": _operation("Whether it takes requests", _ok("Health"), closed=False, unready=True)},
        "/metrics": {"get": _operation("For Prometheus", _content("text/plain", {"type": "string"}), closed=False)},
        "/openapi.json": {
            "get": _operation("This document", _content("application/json", {"type": "object"}), closed=False)
        },
    }


def _operation(
    summary: str,
    ok: Json,
    *parameters: Mapping[str, Any],
    body: str = "",
    closed: bool = True,
    unready: bool = False,
) -> Json:
    """One operation; a `closed` one needs a key where there are keys, and may be refused in all the ways there are."""
    operation: Json = {"summary": summary, "responses": {"200": ok}}
    if parameters:
        operation["parameters"] = list(parameters)
    if body:
        operation["requestBody"] = {"required": True, **_content("application/json", {"$ref": REFERENCE + body})}
    if closed:
        operation["security"] = [{"key": []}, {}]
        for status in ("400", "401", "403", "404", "413", "415", "429", "503"):
            operation["responses"][status] = {"description": "refused", **_json("Error")}
    elif unready:
        operation["responses"]["503"] = {"description": "not ready, and why", **_json("Health")}
    for answer in operation["responses"].values():
        answer["headers"] = {"x-request-id": {"$ref": "#/components/headers/RequestId"}}
    return operation


def _ok(name: str, *, stream: bool = False) -> Json:
    answer = _json(name)
    if stream:
        answer["content"]["text/event-stream"] = {"schema": {"type": "string"}}
    return {"description": "success", **answer}


def _json(name: str) -> Json:
    return {"content": {"application/json": {"schema": {"$ref": REFERENCE + name}}}}


def _content(kind: str, schema: Json) -> Json:
    return {"description": "success", "content": {kind: {"schema": schema}}}


def _query(shape: type[msgspec.Struct]) -> Iterator[Json]:
    """The fields of a query's struct as parameters."""
    for name, field in msgspec.json.schema(shape)["$defs"][shape.__name__]["properties"].items():
        schema = next(kind for kind in field.get("anyOf", [field]) if kind != {"type": "null"})
        yield {"name": name, "in": "query", "schema": {key: value for key, value in schema.items() if key != "default"}}


def _schemas() -> Json:
    _, schemas = msgspec.json.schema_components([ResponseCreate, ChatCreate], ref_template=REFERENCE + "{name}")
    body = schemas["ResponseCreate"]
    for name in ("type", "stream_id"):  # which belong to the WebSocket
        del body["properties"][name]
    body["properties"] |= STREAMABLE
    body["required"] = [name for name in body.get("required", ()) if name != "type"]
    return {**schemas, **_answers()}


def _answers() -> Json:
    text, number, whole = {"type": "string"}, {"type": "number"}, {"type": "integer"}
    return {
        "Error": _object(
            error=_object(code={"enum": _codes()}, message=text, type=text, param={"type": ["string", "null"]})
        ),
        "Response": _object(
            id=text, object={"const": "response"}, created_at=whole, status=text, model=text, output=_list()
        ),
        "Completion": _object(id=text, object={"const": "chat.completion"}, created=whole, model=text, choices=_list()),
        "InputTokens": _object(object={"const": "response.input_tokens"}, input_tokens=whole),
        "Deleted": _object(id=text, object=text, deleted={"const": True}),
        "Items": _object(object={"const": "list"}, data=_list(), has_more={"type": "boolean"}),
        "Models": _object(object={"const": "list"}, data=_list(_object(id=text, object=text, context_length=number))),
        "Health": _object(status=text),
    }


def _object(**fields: Json) -> Json:
    return {"type": "object", "properties": fields, "required": list(fields)}


def _list(items: Json | None = None) -> Json:
    return {"type": "array", "items": items or {"type": "object"}}


def _codes() -> list[str]:
    """Every code that an error may have."""
    classes = (found for found in vars(errors).values() if isinstance(found, type) and issubclass(found, ApiError))
    return sorted({found.code for found in classes})
