"""Conversations of stateless clients: which token ids stand for messages that come again.

Such a client sends its whole conversation with every request. Tokenized anew, an answer may give other ids than the
model emitted, and its KV would be missed. So a hash of the messages up to each answer leads to the ids that the model
saw. Only hashes and ids are held, and only in memory.
"""

from __future__ import annotations

import array
import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from gateway.protocol.requests import ResponseCreate
from gateway.protocol.tool_prompt import Message

TENANT_TOKENS: Final = 1 << 20
"""Token ids held for one tenant, 4 MiB of them; the least recently used go."""
TENANTS: Final = 64
"""Tenants for whom any are held; likewise."""


@dataclass(frozen=True)
class Known:
    """What the model saw of a conversation."""

    messages: int
    """How many of its messages that is; the last one is an answer."""
    ids: list[int]
    response: str
    """The response that ended with them, whose engine may hold their KV."""


class Histories:
    """Bounded tables, one for each tenant."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self._tenants: OrderedDict[str, _Table] = OrderedDict()

    def find(self, tenant: str, request: ResponseCreate, messages: Sequence[Message]) -> Known | None:
        """The longest beginning of the request's conversation that ends with an answer of the model's, if any."""
        table = self._tenants.get(tenant)
        if table is None:
            return None
        keys = list(_keys(request, messages))
        for count in range(len(messages), 0, -1):
            if messages[count - 1]["role"] == "assistant" and (found := table.get(keys[count - 1])) is not None:
                return Known(count, found[0].tolist(), found[1])
        return None

    def keep(
        self, tenant: str, request: ResponseCreate, messages: Sequence[Message], ids: Iterable[int], response: str
    ) -> None:
        """Remember the ids of a conversation that ends with an answer, end of turn excluded."""
        *_, key = _keys(request, messages)
        table = self._tenants.setdefault(tenant, _Table())
        table.put(key, array.array("i", ids), response)
        self._tenants.move_to_end(tenant)
        if len(self._tenants) > TENANTS:
            self._tenants.popitem(last=False)


class _Table:
    """One tenant's."""

    def __init__(self) -> None:
        self._entries: OrderedDict[bytes, tuple[array.array[int], str]] = OrderedDict()
        self._tokens = 0

    def get(self, key: bytes) -> tuple[array.array[int], str] | None:
        found = self._entries.get(key)
        if found is not None:
            self._entries.move_to_end(key)
        return found

    def put(self, key: bytes, ids: array.array[int], response: str) -> None:
        self._drop(key)
        self._entries[key] = (ids, response)
        self._tokens += len(ids)
        while self._tokens > TENANT_TOKENS:
            self._drop(next(iter(self._entries)))

    def _drop(self, key: bytes) -> None:
        if key in self._entries:
            self._tokens -= len(self._entries.pop(key)[0])


def _keys(request: ResponseCreate, messages: Sequence[Message]) -> Iterator[bytes]:
    """A hash for each message and all before it."""
    head: list[Any] = [
        request.instructions,
        msgspec.to_builtins(request.functions),
        msgspec.to_builtins(request.format),
    ]
    key = _hash(b"", head)
    for message in messages:
        key = _hash(key, _told(message))
        yield key


def _told(message: Message) -> list[Any]:
    """What a client is sure to send back as it got it: no ids, no space at the edges."""
    calls = [call["function"] for call in message.get("tool_calls", ())]
    return [message["role"], message["content"].strip(), calls]


def _hash(before: bytes, value: Any) -> bytes:
    return hashlib.sha256(before + msgspec.json.encode(value, order="sorted")).digest()
