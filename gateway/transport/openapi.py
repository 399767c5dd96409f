"""The HTTP API as an OpenAPI 3.1 document. Request bodies come from the structs that validate them."""

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
from gateway.protocol.hints import HEADER, INTERNAL
from gateway.protocol.requests import ResponseCreate
from gateway.protocol.text import TextCreate
from gateway.transport.http import List, Retrieve
from gateway.transport.text import DetokenizeCreate, EmbeddingsCreate, TokenizeCreate

Json = dict[str, Any]
REFERENCE: Final = "#/components/schemas/"
STREAMABLE: Final = {"stream": {"type": ["boolean", "null"], "description": "whether to send server-sent events"}}
BODIES: Final = (ResponseCreate, ChatCreate, TextCreate, TokenizeCreate, DetokenizeCreate, EmbeddingsCreate)
_ID: Final = {
    "name": "id",
    "in": "path",
    "required": True,
    "schema": {"type": "string", "pattern": "^resp_[0-9a-f]{32}$"},
}
_MODEL: Final = {"name": "id", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}


def document() -> Json:
    """Return the OpenAPI document."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Samovar",
            "version": version("samovar"),
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
            "description": "OpenAI's Responses API and chat completions, as far as a text model can serve them. The "
            "main endpoint is the WebSocket mode of `GET /v1/responses`, which OpenAPI cannot describe; see "
            "`docs/api.md`.",
        },
        "externalDocs": {
            "description": "API reference: WebSocket mode, error codes, metrics; a path in the source tree",
            "url": "docs/api.md",
        },
        "paths": _paths(),
        "components": {
            "schemas": _schemas(),
            "headers": {
                "RequestId": {
                    "description": "the id of the request in the log",
                    "required": True,
                    "schema": {"type": "string", "pattern": "^req_[0-9a-f]{32}$"},
                },
                "Ignored": {
                    "description": "paths of the request's fields that have no effect, if there are any",
                    "schema": {"type": "string"},
                },
            },
            "securitySchemes": {
                "key": {"type": "http", "scheme": "bearer", "description": "an API key: `smv_` and 43 characters"}
            },
        },
    }


async def published(_: Request) -> Response:
    """Serve the document."""
    return JSONResponse(document())


def _paths() -> Json:
    one, streamed = "/v1/responses/{id}", _ok("Response", stream=True)
    return {
        "/v1/responses": {"post": _operation("Create a response", streamed, body="ResponseCreate")},
        "/v1/responses/input_tokens": {
            "post": _operation("Count the tokens of a prompt", _ok("InputTokens"), body="ResponseCreate")
        },
        "/v1/chat/completions": {
            "post": _operation("Create a chat completion", _ok("Completion", stream=True), body="ChatCreate")
        },
        "/v1/completions": {
            "post": _operation("Continue a raw prompt", _ok("TextCompletion", stream=True), body="TextCreate")
        },
        "/v1/tokenize": {"post": _operation("Tokenize a text", _ok("Tokens"), body="TokenizeCreate")},
        "/v1/detokenize": {
            "post": _operation("Return the text of tokens", _ok("Text"), body="DetokenizeCreate"),
        },
        "/v1/embeddings": {"post": _refused("Refused: no embeddings are computed", body="EmbeddingsCreate")},
        one: {
            "get": _operation("Get a response, or stream its events", streamed, _ID, *_query(Retrieve)),
            "delete": _operation("Delete a response and its input", _ok("Deleted"), _ID),
        },
        f"{one}/cancel": {"post": _operation("Cancel a running response", _ok("Response"), _ID)},
        f"{one}/input_items": {
            "get": _operation("List the input items of a response", _ok("Items"), _ID, *_query(List))
        },
        "/v1/models": {"get": _operation("List the served models", _ok("Models"))},
        "/v1/models/{id}": {"get": _operation("Describe a model", _ok("Model"), _MODEL)},
        "/healthz": {"get": _operation("Liveness check", _ok("Health"), closed=False)},
        "/readyz": {"get": _operation("Readiness check", _ok("Health"), closed=False, unready=True)},
        "/metrics": {"get": _operation("Prometheus metrics", _content("text/plain", {"type": "string"}), closed=False)},
        "/openapi.json": {
            "get": _operation("This OpenAPI document", _content("application/json", {"type": "object"}), closed=False)
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
    """Return one operation; a `closed` one requires a key where keys exist, and can fail with every error status."""
    operation: Json = {"summary": summary, "responses": {"200": ok}}
    if parameters:
        operation["parameters"] = list(parameters)
    if body:
        operation["requestBody"] = {"required": True, **_content("application/json", {"$ref": REFERENCE + body})}
    if closed:
        operation["security"] = [{"key": []}, {}]
        for status in ("400", "401", "403", "404", "413", "415", "429", "503"):
            operation["responses"][status] = {"description": "error", **_json("Error")}
    elif unready:
        operation["responses"]["503"] = {"description": "not ready, with the reason", **_json("Health")}
    operation["responses"]["405"] = {"description": "the path does not support the method", **_json("Error")}
    operation["responses"]["500"] = {"description": "a fault of the gateway", **_json("Error")}
    for response in operation["responses"].values():
        response["headers"] = {"x-request-id": {"$ref": "#/components/headers/RequestId"}}
    if body:
        ok["headers"][HEADER] = {"$ref": "#/components/headers/Ignored"}
    return operation


def _refused(summary: str, *, body: str) -> Json:
    """Return an operation that always fails."""
    operation = _operation(summary, {}, body=body)
    del operation["responses"]["200"]
    return operation


def _ok(name: str, *, stream: bool = False) -> Json:
    response = _json(name)
    if stream:
        response["content"]["text/event-stream"] = {"schema": {"type": "string"}}
    return {"description": "OK", **response}


def _json(name: str) -> Json:
    return {"content": {"application/json": {"schema": {"$ref": REFERENCE + name}}}}


def _content(kind: str, schema: Json) -> Json:
    return {"description": "OK", "content": {kind: {"schema": schema}}}


def _query(shape: type[msgspec.Struct]) -> Iterator[Json]:
    """Yield the fields of a query struct as parameters."""
    for name, field in msgspec.json.schema(shape)["$defs"][shape.__name__]["properties"].items():
        schema = next(kind for kind in field.get("anyOf", [field]) if kind != {"type": "null"})
        yield {"name": name, "in": "query", "schema": {key: value for key, value in schema.items() if key != "default"}}


def _schemas() -> Json:
    _, schemas = msgspec.json.schema_components(BODIES, ref_template=REFERENCE + "{name}")
    body = schemas["ResponseCreate"]
    for name in ("type", "stream_id", *INTERNAL):  # fields of the WebSocket mode, and the gateway's own
        del body["properties"][name]
    body["properties"] |= STREAMABLE
    body["required"] = [name for name in body.get("required", ()) if name != "type"]
    return {**schemas, **_response_schemas()}


def _response_schemas() -> Json:
    text, number, whole = {"type": "string"}, {"type": "number"}, {"type": "integer"}
    return {
        "Error": _object(
            error=_object(code={"enum": _codes()}, message=text, type=text, param={"type": ["string", "null"]})
        ),
        "Response": _object(
            id=text,
            object={"const": "response"},
            created_at=whole,
            completed_at={"type": ["integer", "null"]},
            status=text,
            model=text,
            output=_list(),
        ),
        "Completion": _object(
            id=text,
            object={"const": "chat.completion"},
            created=whole,
            model=text,
            system_fingerprint=text,
            choices=_list(),
        ),
        "TextCompletion": _object(
            id=text,
            object={"const": "text_completion"},
            created=whole,
            model=text,
            system_fingerprint=text,
            choices=_list(),
        ),
        "Tokens": _object(tokens={"type": "array", "items": {"type": ["integer", "object"]}}),
        "Text": _object(content=text),
        "InputTokens": _object(object={"const": "response.input_tokens"}, input_tokens=whole),
        "Deleted": _object(id=text, object=text, deleted={"const": True}),
        "Items": _object(object={"const": "list"}, data=_list(), has_more={"type": "boolean"}),
        "Models": _object(object={"const": "list"}, data=_list({"$ref": f"{REFERENCE}Model"})),
        "Model": _object(id=text, object={"const": "model"}, context_length=number),
        "Health": _object(status=text),
    }


def _object(**fields: Json) -> Json:
    return {"type": "object", "properties": fields, "required": list(fields)}


def _list(items: Json | None = None) -> Json:
    return {"type": "array", "items": items or {"type": "object"}}


def _codes() -> list[str]:
    """Return all error codes, sorted."""
    classes = (found for found in vars(errors).values() if isinstance(found, type) and issubclass(found, ApiError))
    return sorted({found.code for found in classes})
