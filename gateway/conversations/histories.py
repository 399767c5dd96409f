"""Token ids of conversations of stateless clients, by a hash of their messages.

Such a client sends its whole conversation with every request. Tokenizing an answer again may give other ids than the
model generated, which would miss the cached KV. Therefore a hash of the messages up to each answer maps to the ids that
the model saw. Only hashes and ids are held, and only in memory.
"""

from __future__ import annotations

import array
import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from gateway.protocol.items import Item, input_item, messages
from gateway.protocol.requests import ResponseCreate
from gateway.protocol.tool_prompt import Message

TENANT_TOKENS: Final = 1 << 20
"""Maximum token ids held per tenant, which take 4 MiB. The least recently used are evicted."""
TENANTS: Final = 64
"""Maximum tenants with held ids. The least recently used are evicted."""


@dataclass(frozen=True)
class Known:
    """The known prefix of a conversation."""

    messages: int
    """Number of messages in the prefix. The last one is an answer."""
    ids: list[int]
    """The token ids that the model saw."""
    response: str
    """Id of the response that ended with the prefix. Its engine may hold the KV."""


class Histories:
    """Bounded tables of known prefixes, one per tenant."""

    def __init__(self) -> None:
        """Create an empty table."""
        self._tenants: OrderedDict[str, _Table] = OrderedDict()

    def find(self, tenant: str, request: ResponseCreate, messages: Sequence[Message]) -> Known | None:
        """Return the longest known prefix of the request's conversation that ends with an answer, or None."""
        table = self._tenants.get(tenant)
        if table is None:
            return None
        keys = list(_keys(request, messages))
        for count in range(len(messages), 0, -1):
            if messages[count - 1]["role"] == "assistant" and (found := table.get(keys[count - 1])) is not None:
                return Known(count, found[0].tolist(), found[1])
        return None

    def take(self, tenant: str) -> list[list[int]]:
        """Remove all known prefixes of a tenant and return their ids."""
        table = self._tenants.pop(tenant, None)
        return [] if table is None else table.all()

    def store(
        self, tenant: str, request: ResponseCreate, messages: Sequence[Message], ids: Iterable[int], response: str
    ) -> None:
        """Store the ids of a conversation that ends with an answer, without the end-of-turn token."""
        if not request.items:  # a raw prompt has no messages under which it could be found
            return
        *_, key = _keys(request, messages)
        table = self._tenants.setdefault(tenant, _Table())
        table.put(key, array.array("i", ids), response)
        self._tenants.move_to_end(tenant)
        if len(self._tenants) > TENANTS:
            self._tenants.popitem(last=False)


class _Table:
    """One tenant's known prefixes."""

    def __init__(self) -> None:
        self._entries: OrderedDict[bytes, tuple[array.array[int], str]] = OrderedDict()
        self._tokens = 0

    def all(self) -> list[list[int]]:
        return [ids.tolist() for ids, _ in self._entries.values()]

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


def transcript(request: ResponseCreate, output: Sequence[Item]) -> list[Message]:
    """Return the conversation as a stateless client will send it: its messages, then the answer.

    An answer that continues the last message is one message with it.
    """
    said = messages([input_item(item, lambda prefix: prefix) for item in request.items])
    answer = messages(output)
    if request.continues_text and answer:
        before, first, *rest = said.pop(), *answer
        return [*said, {**first, "content": before["content"] + first["content"]}, *rest]
    return [*said, *answer]


def _keys(request: ResponseCreate, messages: Sequence[Message]) -> Iterator[bytes]:
    """Yield, for each message, a hash of the conversation up to and including it."""
    head: list[Any] = [
        request.thinking,
        request.instructions,
        msgspec.to_builtins(request.functions),
        msgspec.to_builtins(request.format),
    ]
    key = _hash(b"", head)
    for message in messages:
        key = _hash(key, _stable_fields(message))
        yield key


def _stable_fields(message: Message) -> list[Any]:
    """Return the parts of a message that clients send back unchanged: no ids, no leading or trailing white space."""
    calls = [call["function"] for call in message.get("tool_calls", ())]
    return [message["role"], message["content"].strip(), calls]


def _hash(before: bytes, value: Any) -> bytes:
    return hashlib.sha256(before + msgspec.json.encode(value, order="sorted")).digest()
