"""Items that a request refers to instead of sending them: by id, or as the call of a function's output."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final

import msgspec

from gateway.conversations.turns import Turn
from gateway.errors import InvalidRequestError, ItemNotFoundError
from gateway.protocol.ids import response_of
from gateway.protocol.items import Item
from gateway.protocol.requests import FunctionCall, FunctionCallOutput, ItemReference, ResponseCreate

MAX_LOADED: Final = 64
"""Maximum responses that are loaded for the references of one request. A response has its whole conversation, so a
client that refers to every earlier item needs one."""
MAX_REFERENCED: Final = 8 << 20
"""Maximum bytes of all referenced items. A request of a few KB can refer to one long item a thousand times."""

Load = Callable[[str], Awaitable[Turn | None]]
"""Returns a response of the user, or None."""


def referenced_responses(request: ResponseCreate) -> set[str]:
    """Return the ids of the responses in whose output the referenced items were, as far as the ids say."""
    found = {response_of(item.id) for item in request.items if isinstance(item, ItemReference)}
    return {response for response in found if response is not None}


async def resolve(request: ResponseCreate, previous: Turn | None, load: Load) -> dict[str, Item]:
    """Return the items that the request refers to, by id.

    They are in the conversation of `previous`, or of another response of the user. Raises ItemNotFoundError,
    InvalidRequestError or whatever `load` raises.
    """
    found = _by_id(previous.items if previous is not None else ())
    loaded: set[str] = set()
    for i, item in reversed(list(enumerate(_listed(request)))):  # later responses have the items of earlier ones
        if not isinstance(item, ItemReference) or item.id in found:
            continue
        response = response_of(item.id)
        if response is not None and response not in loaded:
            if len(loaded) >= MAX_LOADED:
                raise InvalidRequestError(
                    f"input: the references lead to more than {MAX_LOADED} responses; send the items themselves",
                    param="input",
                )
            loaded.add(response)
            turn = await load(response)
            found = _by_id(turn.items if turn is not None else ()) | found
        if item.id not in found:
            raise ItemNotFoundError(
                f"input[{i}].id: there is no stored item {item.id}; send the item itself", param=f"input[{i}].id"
            )
    _check_size(request, found)
    return found


def _check_size(request: ResponseCreate, found: Mapping[str, Item]) -> None:
    """Raise InvalidRequestError if the referenced items are too large; each counts as often as it is referenced."""
    times = Counter(item.id for item in request.items if isinstance(item, ItemReference))
    if sum(count * len(msgspec.json.encode(found[item])) for item, count in times.items()) > MAX_REFERENCED:
        raise InvalidRequestError(
            f"input: the referenced items have more than {MAX_REFERENCED} bytes; refer to fewer", param="input"
        )


def check_outputs(request: ResponseCreate, previous: Turn | None, references: Mapping[str, Item]) -> None:
    """Raise InvalidRequestError if the output of a function has no call in the conversation."""
    if not request.needs_calls:
        return
    before = [*(previous.items if previous is not None else ()), *references.values()]
    calls = {item["call_id"] for item in before if item["type"] == "function_call"}
    calls |= {item.call_id for item in request.items if isinstance(item, FunctionCall)}
    for i, item in enumerate(_listed(request)):
        if isinstance(item, FunctionCallOutput) and item.call_id not in calls:
            raise InvalidRequestError(
                f"input[{i}].call_id: no function call of this conversation has the id {item.call_id}; send the call, "
                "too, or continue the response that made it",
                param=f"input[{i}].call_id",
            )


def _listed(request: ResponseCreate) -> Sequence[object]:
    """Return the input as the client listed it: places are counted with `reasoning` items; a text is no list."""
    return () if isinstance(request.input, str) else request.input or ()


def _by_id(items: Sequence[Item]) -> dict[str, Item]:
    return {item["id"]: item for item in items}
