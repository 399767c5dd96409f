"""The HTTP API as an OpenAPI 3.1 document. Request bodies come from the structs that validate them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from importlib.metadata import version
from typing import Any, Final

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from gateway.protocol.anthropic_body import MessagesCreate
from gateway.protocol.anthropic_events import OVERLOADED
from gateway.protocol.chat import ChatCreate
from gateway.protocol.hints import HEADER, INTERNAL
from gateway.protocol.ollama import ChatFields, GenerateFields
from gateway.protocol.requests import ResponseCreate
from gateway.protocol.text import TextCreate
from gateway.transport import account, admin
from gateway.transport.conversations import (
    ROOT,
    ConversationCreate,
    ConversationList,
    ConversationUpdate,
    ItemList,
    ItemsCreate,
    Search,
    TurnsCreate,
)
from gateway.transport.dialects import MESSAGES, REQUEST_ID
from gateway.transport.http import List, Retrieve
from gateway.transport.ollama import REFUSED
from gateway.transport.ollama_models import ShowFields
from gateway.transport.openapi_schemas import REFERENCE, Json, response_schemas
from gateway.transport.text import DetokenizeCreate, EmbeddingsCreate, TokenizeCreate
from gateway.transport.trusted_hosts import DOCUMENT_TYPES, DOCUMENTS

SSE: Final = "text/event-stream"
STREAMABLE: Final = {"stream": {"type": ["boolean", "null"], "description": "whether to send server-sent events"}}
CONVERSATION_FIELD: Final = {
    "conversation": {
        "description": "the conversation to continue: its id, or an object with `id`, `after` and `key`",
        "anyOf": [
            {"type": "string", "minLength": 1},
            {
                "type": "object",
                "properties": {
                    "id": {"type": "string", "minLength": 1},
                    "after": {"type": ["string", "null"]},
                    "key": {"type": "string", "maxLength": 64},
                },
                "required": ["id"],
            },
            {"type": "null"},
        ],
    }
}
BODIES: Final = (
    *(ResponseCreate, ChatCreate, TextCreate, MessagesCreate, TokenizeCreate, DetokenizeCreate, EmbeddingsCreate),
    *(ChatFields, GenerateFields, ShowFields, ConversationCreate, ConversationUpdate, ItemsCreate, TurnsCreate),
    *(admin.UserCreate, admin.LimitsUpdate, admin.KeyRotate),
)
_ID: Final = {
    "name": "id",
    "in": "path",
    "required": True,
    "schema": {"type": "string", "pattern": "^resp_[0-9a-f]{32}$"},
}
_CONVERSATION: Final = {
    "name": "id",
    "in": "path",
    "required": True,
    "schema": {"type": "string", "pattern": "^conv_[0-9a-f]{32}$"},
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
            "description": "OpenAI's Responses API and chat completions, Anthropic's Messages API and Ollama's API, as "
            "far as a text model can serve them. The main endpoint is the WebSocket mode of `GET /v1/responses`, which "
            "OpenAPI cannot describe; see `docs/api.md`.",
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
    one, streamed = "/v1/responses/{id}", _ok("Response", stream=SSE)
    return {
        "/v1/responses": {"post": _operation("Create a response", streamed, body="ResponseCreate")},
        "/v1/responses/input_tokens": {
            "post": _operation("Count the tokens of a prompt", _ok("InputTokens"), body="ResponseCreate")
        },
        "/v1/chat/completions": {
            "post": _operation("Create a chat completion", _ok("Completion", stream=SSE), body="ChatCreate")
        },
        "/v1/completions": {
            "post": _operation("Continue a raw prompt", _ok("TextCompletion", stream=SSE), body="TextCreate")
        },
        "/v1/tokenize": {"post": _operation("Tokenize a text", _ok("Tokens"), body="TokenizeCreate")},
        "/v1/detokenize": {
            "post": _operation("Return the text of tokens", _ok("Text"), body="DetokenizeCreate"),
        },
        DOCUMENTS: {"post": _document()},
        "/v1/embeddings": {"post": _refused("Refused: no embeddings are computed", body="EmbeddingsCreate")},
        MESSAGES: {"post": _anthropic("Create a message", _ok("Message", stream=SSE))},
        f"{MESSAGES}/count_tokens": {"post": _anthropic("Count the tokens of a prompt", _ok("MessageTokens"))},
        one: {
            "get": _operation("Get a response, or stream its events", streamed, _ID, *_query(Retrieve)),
            "delete": _operation("Delete a response and its input", _ok("Deleted"), _ID),
        },
        f"{one}/cancel": {"post": _operation("Cancel a running response", _ok("Response"), _ID)},
        f"{one}/input_items": {
            "get": _operation("List the input items of a response", _ok("Items"), _ID, *_query(List))
        },
        **_conversation_paths(),
        **_account_paths(),
        **_admin_paths(),
        **_ollama_paths(),
        "/v1/models": {"get": _operation("List the served models", _ok("Models"))},
        "/v1/models/{id}": {"get": _operation("Describe a model", _ok("Model"), _MODEL)},
        "/healthz": {"get": _operation("Liveness check", _ok("Health"), closed=False)},
        "/readyz": {"get": _operation("Readiness check", _ok("Health"), closed=False, unready=True)},
        "/metrics": {"get": _operation("Prometheus metrics", _content("text/plain", {"type": "string"}), closed=False)},
        "/openapi.json": {
            "get": _operation("This OpenAPI document", _content("application/json", {"type": "object"}), closed=False)
        },
    }


def _conversation_paths() -> Json:
    """Return the operations of the Conversations API."""
    one, item = f"{ROOT}/{{id}}", f"{ROOT}/{{id}}/items/{{item}}"
    item_id = {**_MODEL, "name": "item"}
    return {
        ROOT: {
            "get": _operation("List the user's conversations", _ok("Conversations"), *_query(ConversationList)),
            "post": _operation("Create a conversation", _ok("Conversation"), body="ConversationCreate"),
        },
        f"{ROOT}/search": {"get": _operation("Search in titles and texts", _ok("Items"), *_query(Search))},
        one: {
            "get": _operation("Get a conversation", _ok("Conversation"), _CONVERSATION),
            "post": _operation("Change a conversation", _ok("Conversation"), _CONVERSATION, body="ConversationUpdate"),
            "delete": _operation("Delete a conversation and its responses", _ok("Deleted"), _CONVERSATION),
        },
        f"{one}/turns": {
            "get": _operation("List a conversation's turns with their items", _ok("Turns"), _CONVERSATION),
            "post": _operation("Add earlier turns", _ok("Conversation"), _CONVERSATION, body="TurnsCreate"),
        },
        f"{one}/items": {
            "get": _operation("List a conversation's items", _ok("Items"), _CONVERSATION, *_query(ItemList)),
            "post": _operation("Add items to a conversation", _ok("Items"), _CONVERSATION, body="ItemsCreate"),
        },
        item: {
            "get": _operation("Get an item", _ok("Item"), _CONVERSATION, item_id),
            "delete": _refused("Refused: items are not deleted one by one", _CONVERSATION, item_id),
        },
    }


def _account_paths() -> Json:
    """Return the operations by which users learn about their own account."""
    return {
        account.ROOT: {"get": _operation("Get the caller's account", _ok("Account"))},
        f"{account.ROOT}/usage": {
            "get": _operation("List the caller's usage by day", _ok("Items"), *_query(account.UsageQuery))
        },
    }


def _admin_paths() -> Json:
    """Return the operations of the admin API."""
    users, usage = f"{admin.ROOT}/users", f"{admin.ROOT}/usage"
    one, id_ = f"{users}/{{id}}", {**_MODEL, "schema": {"type": "string", "pattern": "^[0-9a-f]{8}$"}}
    return {
        users: {
            "get": _operation("List all users", _ok("Items")),
            "post": _operation("Create a user with a key", _ok("UserWithKey"), body="UserCreate", hints=False),
        },
        one: {
            "post": _operation("Change a user's limits", _ok("User"), id_, body="LimitsUpdate", hints=False),
            "delete": _operation("Delete a user with all data", _ok("Deleted"), id_),
        },
        f"{one}/rotate": {
            "post": _operation("Replace a user's key", _ok("UserWithKey"), id_, body="KeyRotate", hints=False)
        },
        f"{one}/revoke": {"post": _operation("Revoke a user's key", _ok("User"), id_)},
        usage: {"get": _operation("Usage of all users", _ok("Items"), *_query(admin.UsageReport))},
        f"{usage}.csv": {
            "get": _operation("Usage of all users by day, as CSV", _content("text/csv", {"type": "string"}))
        },
        f"{admin.ROOT}/engines": {"get": _operation("The served model and its engines", _ok("Items"))},
    }


def _ollama_paths() -> Json:
    """Return the operations of Ollama's API, whose errors have a form of their own."""
    operation = partial(_operation, error="OllamaError")
    paths: Json = {}
    for (method, path), reason in REFUSED.items():
        paths[path] = {method.lower(): _refused(f"Refused: {reason}", error="OllamaError")}
    for name, fields in (("chat", ChatFields), ("generate", GenerateFields)):
        answer = _ok("OllamaAnswer", stream="application/x-ndjson")
        paths[f"/api/{name}"] = {"post": operation("Generate an answer", answer, body=fields.__name__)}
    return {
        **paths,
        "/api/tags": {"get": operation("List the served model", _ok("OllamaModels"))},
        "/api/ps": {"get": operation("List the model if it is loaded", _ok("OllamaModels"))},
        "/api/version": {"get": operation("The version of the API", _ok("OllamaVersion"))},
        "/api/show": {"post": operation("Describe a model", _ok("OllamaModel"), body="ShowFields")},
    }


def _operation(
    summary: str,
    ok: Json,
    *parameters: Mapping[str, Any],
    body: str = "",
    error: str = "Error",
    closed: bool = True,
    unready: bool = False,
    hints: bool = True,
) -> Json:
    """Return one operation; a `closed` one requires a key where keys exist, and can fail with every error status.

    `hints` says whether fields of the body can be without effect.
    """
    operation: Json = {"summary": summary, "responses": {"200": ok}}
    if parameters:
        operation["parameters"] = list(parameters)
    if body:
        operation["requestBody"] = {"required": True, **_content("application/json", {"$ref": REFERENCE + body})}
    if closed:
        operation["security"] = [{"key": []}, {}]
        for status in ("400", "401", "403", "404", "413", "415", "429", "503"):
            operation["responses"][status] = {"description": "error", **_json(error)}
    elif unready:
        operation["responses"]["503"] = {"description": "not ready, with the reason", **_json("Health")}
    operation["responses"]["405"] = {"description": "the path does not support the method", **_json(error)}
    operation["responses"]["500"] = {"description": "a fault of the gateway", **_json(error)}
    for response in operation["responses"].values():
        response["headers"] = {"x-request-id": {"$ref": "#/components/headers/RequestId"}}
    if body and hints:
        ok["headers"][HEADER] = {"$ref": "#/components/headers/Ignored"}
    return operation


def _document() -> Json:
    """Return the operation that reads the text of a document."""
    operation = _operation("Return the text of a PDF or docx file", _ok("DocumentText"))
    content = {kind: {"schema": {"type": "string", "format": "binary"}} for kind in DOCUMENT_TYPES}
    return {**operation, "requestBody": {"required": True, "content": content}}


def _refused(summary: str, *parameters: Json, body: str = "", error: str = "Error") -> Json:
    """Return an operation that always fails."""
    operation = _operation(summary, {}, *parameters, body=body, error=error)
    del operation["responses"]["200"]
    return operation


def _anthropic(summary: str, ok: Json) -> Json:
    """Return an operation of Anthropic's Messages API, which has errors of its own form."""
    operation = _operation(summary, ok, body="MessagesCreate")
    operation["responses"][str(OVERLOADED)] = operation["responses"]["503"]
    for status, response in operation["responses"].items():
        response["headers"] = {**response["headers"], REQUEST_ID: {"$ref": "#/components/headers/RequestId"}}
        if status != "200":
            response["content"] = _json("MessageError")["content"]
    return operation


def _ok(name: str, *, stream: str = "") -> Json:
    """Return a response with the schema `name`; `stream` is the content type of its streamed form, if there is one."""
    response = _json(name)
    if stream:
        response["content"][stream] = {}  # OpenAPI 3.1 has no schema for the events or lines of a stream
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
    body["properties"] |= STREAMABLE | CONVERSATION_FIELD
    body["required"] = [name for name in body.get("required", ()) if name != "type"]
    return {**schemas, **response_schemas()}
