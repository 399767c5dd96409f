"""Unsupported fields of a request: hints are ignored and recorded, demands are refused.

A hint cannot change the meaning of an answer (caching, effort, tracing, billing), or is unknown; it is accepted and
recorded. A demand would change the answer and cannot be met; the request is refused with an error that names the field.
Not related to `Demand` in gateway/scheduling/placement.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final

import msgspec
from msgspec import inspect

from gateway.errors import UnsupportedParameterError

MAX_LISTED: Final = 32
"""Maximum paths in a list of ignored fields; a last entry `...` stands for the rest."""
MAX_PATH: Final = 64
"""Maximum characters of one path in the list."""
HEADER: Final = "x-samovar-ignored"
"""HTTP header with the ignored fields of a request."""
INTERNAL: Final = frozenset({"ignored", "repeated"})
"""Fields of request structs that the gateway sets, and no client."""
Neutral = Mapping[str, Sequence[Any]]
"""Unsupported fields that clients send with values that request nothing, by field."""
Demands = Mapping[str, str]
"""Fields that are refused unless their value is neutral, each with advice, which may be empty."""

DEMANDS: Final[Demands] = {
    "n": "send one request for each answer",
    "modalities": "answers are text",
    "audio": "answers are text",
    "conversation": "continue with `previous_response_id`",
    "functions": "use `tools`",
    "function_call": "use `tool_choice`",
    **dict.fromkeys(
        ("grammar", "json_schema", "guided_json", "guided_regex", "guided_choice", "guided_grammar",
         "structured_outputs"),
        "a JSON schema can be given as the format of the answer",
    ),
    **dict.fromkeys(("echo", "suffix", "best_of", "use_beam_search", "prompt"), ""),
}  # fmt: skip
"""Fields of both APIs that would change the answer."""

_NOTHING: Final[tuple[Any, ...]] = (False, [], "")
"""Values with which a demand asks for nothing."""
_PLAIN: Final = frozenset({"id", "status", "phase", "annotations", "logprobs", "index", "name"})
"""Fields of items, messages and parts that only describe them; clients return them with the history."""
_INDEX: Final = re.compile(r"\[\d+\]")
_FOREIGN: Final = re.compile(r"[^A-Za-z0-9_.$\[\]-]")


class Hints:
    """The fields of one request that have no effect."""

    def __init__(self, *, strict: bool = False) -> None:
        """With `strict` (the setting `strict_fields`) hints are refused, too."""
        self._strict = strict
        self._paths: dict[str, None] = {}

    def add(self, path: str, *, param: str | None = None) -> None:
        """Record a field without effect. Raises UnsupportedParameterError that names `param` if hints are refused."""
        if self._strict:
            text = f"`{path}` has no effect here, and `strict_fields` refuses such fields; leave it out"
            raise UnsupportedParameterError(text, param=param or path)
        shown = _FOREIGN.sub("?", _INDEX.sub("[]", path[: 4 * MAX_PATH]))[:MAX_PATH]
        shown = shown or "?"  # a field may be named "", and a header that ends with a space breaks the response
        if len(self._paths) <= MAX_LISTED:
            self._paths.setdefault(shown)

    @property
    def ignored(self) -> tuple[str, ...]:
        """The paths in ASCII, each once, with `[]` for any index; at most MAX_LISTED and then `...`."""
        paths = tuple(self._paths)
        return paths if len(paths) <= MAX_LISTED else (*paths[:MAX_LISTED], "...")

    def add_unused(self, body: Mapping[str, Any], target: type[msgspec.Struct]) -> None:
        """Record the nested fields of `body` that the struct `target` does not have."""
        for field in _struct(target).fields:
            if (value := body.get(field.encode_name)) is not None:
                for path in _unused(value, field.type, field.encode_name):
                    self.add(path)

    def select(
        self, raw: Mapping[str, Any], target: type[msgspec.Struct], *, neutral: Neutral, demands: Demands
    ) -> dict[str, Any]:
        """Return the fields of `raw` that `target` has, including its tag, and record the others.

        Raises UnsupportedParameterError that names the field.
        """
        struct = _struct(target)
        known = {*(field.encode_name for field in struct.fields), struct.tag_field} - INTERNAL
        for name, value in raw.items():
            if name in known or value is None or value in neutral.get(name, ()):
                continue
            if name not in demands:
                self.add(name)
            elif value not in _NOTHING:
                advice = demands[name]
                raise UnsupportedParameterError(
                    f"`{name}` is not supported here{f'; {advice}' if advice else ''}", param=name
                )
        return {name: value for name, value in raw.items() if name in known}


def integer_fields(target: type[msgspec.Struct]) -> frozenset[str]:
    """Return the names of the fields of `target` that are integers."""
    return frozenset(
        field.encode_name
        for field in _struct(target).fields
        if any(isinstance(kind, inspect.IntType) for kind in _kinds(field.type))
    )


@lru_cache(maxsize=16)
def _struct(target: type[msgspec.Struct]) -> inspect.StructType:
    found = inspect.type_info(target)
    assert isinstance(found, inspect.StructType)  # noqa: S101 - for the type checker
    return found


def _kinds(kind: inspect.Type) -> tuple[inspect.Type, ...]:
    return kind.types if isinstance(kind, inspect.UnionType) else (kind,)


def _unused(value: Any, kind: inspect.Type, path: str) -> Iterator[str]:
    """Yield the paths of the fields within `value` that its type does not have. The types bound the recursion."""
    if isinstance(value, list):
        for inner in (other.item_type for other in _kinds(kind) if isinstance(other, inspect.ListType)):
            for i, member in enumerate(value):
                yield from _unused(member, inner, f"{path}[{i}]")
    elif isinstance(value, dict) and (struct := _matching(value, kind)) is not None:
        types = {field.encode_name: field.type for field in struct.fields}
        for name, member in value.items():
            if name in types:
                yield from _unused(member, types[name], f"{path}.{name}")
            elif member is not None and name != struct.tag_field and name not in _PLAIN:
                yield f"{path}.{name}"


def _matching(value: Mapping[str, Any], kind: inspect.Type) -> inspect.StructType | None:
    """Return the struct among the types of a field that an object of this tag is converted to."""
    structs = [other for other in _kinds(kind) if isinstance(other, inspect.StructType)]
    if len(structs) == 1:
        return structs[0]
    return next((other for other in structs if other.tag == value.get(str(other.tag_field))), None)
