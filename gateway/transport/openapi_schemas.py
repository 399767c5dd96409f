"""The schemas of answers in the OpenAPI document; those of request bodies come from the structs that validate them."""

from __future__ import annotations

from typing import Any, Final

from gateway import errors
from gateway.errors import ApiError

Json = dict[str, Any]
REFERENCE: Final = "#/components/schemas/"


def response_schemas() -> Json:
    """Return the schemas of answers and errors, by name. They list the fields that clients rely on."""
    text, number, whole = {"type": "string"}, {"type": "number"}, {"type": "integer"}
    user = {"object": {"const": "user"}, "id": text, "name": text, "state": text, "tokens_today": whole}
    completion = {"id": text, "created": whole, "model": text, "system_fingerprint": text, "choices": _list()}
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
        "Completion": _object(object={"const": "chat.completion"}, **completion),
        "TextCompletion": _object(object={"const": "text_completion"}, **completion),
        "Tokens": _object(tokens={"type": "array", "items": {"type": ["integer", "object"]}}),
        "Text": _object(content=text),
        "DocumentText": _object(object={"const": "document.text"}, text=text, truncated={"type": "boolean"}),
        "Message": _object(
            id=text,
            type={"const": "message"},
            role={"const": "assistant"},
            model=text,
            content=_list(),
            stop_reason=text,
            usage={"type": "object"},
        ),
        "MessageTokens": _object(input_tokens=whole),
        "MessageError": _object(type={"const": "error"}, error=_object(type=text, message=text), request_id=text),
        "InputTokens": _object(object={"const": "response.input_tokens"}, input_tokens=whole),
        "Deleted": _object(id=text, object=text, deleted={"const": True}),
        "Items": _object(object={"const": "list"}, data=_list(), has_more={"type": "boolean"}),
        "Item": _object(id=text, type=text),
        "Conversation": _object(
            id=text, object={"const": "conversation"}, created_at=whole, metadata={"type": "object"}
        ),
        "Turns": _object(
            object={"const": "list"}, conversation={"$ref": f"{REFERENCE}Conversation"}, data=_list(_object(id=text))
        ),
        "Conversations": _object(
            object={"const": "list"}, data=_list({"$ref": f"{REFERENCE}Conversation"}), has_more={"type": "boolean"}
        ),
        "User": _object(**user),
        "UserWithKey": _object(**user, key=text),
        "Account": _object(**user, storage=_object(bytes=whole, limit=whole)),
        "Models": _object(object={"const": "list"}, data=_list({"$ref": f"{REFERENCE}Model"})),
        "Model": _object(id=text, object={"const": "model"}, context_length=number),
        "Health": _object(status=text),
        "OllamaError": _object(error=text),
        "OllamaAnswer": _object(model=text, created_at=text, done={"const": True}, done_reason=text),
        "OllamaModels": _object(models=_list(_object(name=text, model=text, digest=text, size=whole))),
        "OllamaModel": _object(
            template=text, capabilities=_list(text), details={"type": "object"}, model_info={"type": "object"}
        ),
        "OllamaVersion": _object(version=text),
    }


def _object(**fields: Json) -> Json:
    return {"type": "object", "properties": fields, "required": list(fields)}


def _list(items: Json | None = None) -> Json:
    return {"type": "array", "items": items or {"type": "object"}}


def _codes() -> list[str]:
    """Return all error codes, sorted."""
    classes = (found for found in vars(errors).values() if isinstance(found, type) and issubclass(found, ApiError))
    return sorted({found.code for found in classes})
