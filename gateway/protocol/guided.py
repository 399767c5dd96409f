"""The fields by which clients of llama-server and vLLM state the form of an answer."""

from __future__ import annotations

import json
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from gateway.errors import InvalidRequestError
from gateway.protocol.sampling import SamplingParams
from gateway.protocol.tools import GrammarFormat
from gateway.protocol.values import check_values

Grammar = Annotated[str, Meta(min_length=1, max_length=64 << 10)]
Choices = Annotated[list[str], Meta(min_length=1, max_length=1024)]
JsonText = dict[str, Any] | str
"""A schema, or its JSON."""


class StructuredOutputs(msgspec.Struct, frozen=True, kw_only=True):
    """vLLM's `structured_outputs`."""

    json: JsonText | None = None
    regex: Grammar | None = None
    choice: Choices | None = None
    grammar: Grammar | None = None


class GuidedParams(SamplingParams, frozen=True, kw_only=True):
    """Sampling parameters with llama-server's `grammar` and vLLM's fields."""

    grammar: Grammar | None = None
    guided_json: JsonText | None = None
    guided_regex: Grammar | None = None
    guided_choice: Choices | None = None
    guided_grammar: Grammar | None = None
    structured_outputs: StructuredOutputs | None = None


_KINDS: Final[tuple[Literal["json", "regex", "choice", "grammar"], ...]] = ("json", "regex", "choice", "grammar")


def guided_format(params: GuidedParams) -> GrammarFormat | None:
    """Return the required form of the answer. Raises InvalidRequestError."""
    found = (
        [] if params.grammar is None else [GrammarFormat(syntax="grammar", definition=params.grammar, path="grammar")]
    )
    for kind in _KINDS:
        for path, value in (
            (f"guided_{kind}", getattr(params, f"guided_{kind}")),
            (f"structured_outputs.{kind}", getattr(params.structured_outputs, kind, None)),
        ):
            if value is not None:
                definition = _schema(value, path) if kind == "json" else value
                found.append(GrammarFormat(syntax=kind, definition=definition, path=path))
    if len(found) > 1:
        names = " and ".join(form.path for form in found)
        raise InvalidRequestError(f"{names} exclude each other; use one", param=found[1].path)
    return found[0] if found else None


def _schema(value: JsonText, path: str) -> dict[str, Any]:
    try:
        schema = json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError) as error:
        raise InvalidRequestError(f"{path}: it is not valid JSON: {error}", param=path) from error
    if not isinstance(schema, dict):
        raise InvalidRequestError(f"{path}: a schema is a JSON object", param=path)
    check_values(schema, path)
    return schema
