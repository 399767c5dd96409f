"""Items that requests refer to by id, and the ids that make it possible."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.conversations.references import MAX_LOADED, MAX_REFERENCED, resolve
from gateway.conversations.turns import Turn
from gateway.errors import InvalidRequestError, ItemNotFoundError
from gateway.protocol.ids import RANDOM_DIGITS, ItemIds, response_id, response_of
from gateway.protocol.items import Item, text_item
from gateway.protocol.requests import ItemReference, ResponseCreate

RANDOM = st.text("0123456789abcdef", min_size=RANDOM_DIGITS, max_size=RANDOM_DIGITS)


@given(RANDOM, st.lists(st.sampled_from(["msg", "fc"]), min_size=1, max_size=20))
def test_the_id_of_an_item_leads_to_its_response(random: str, prefixes: list[str]) -> None:
    response = response_id(random)
    new_id = ItemIds(response)
    ids = [new_id(prefix) for prefix in prefixes]
    assert len({item.partition("_")[2] for item in [*ids, response]}) == len(ids) + 1
    assert all(re.fullmatch("(msg|fc|resp)_[0-9a-f]{32}", item) for item in [*ids, response])
    assert {response_of(item) for item in ids} == {response}


@pytest.mark.parametrize("item", ["", "msg_1", "msg_" + "g" * 32, "msg_" + "0" * 31, "msg_" + "0" * 32 + "\n"])
def test_other_texts_lead_nowhere(item: str) -> None:
    assert response_of(item) is None


def turn(response: str, items: list[Item]) -> Turn:
    return Turn(id=response, previous=None, created_at=1, began=1, instructions=None, items=items, input=0, response={})


class Stored:
    """Turns of one conversation; each has the items of those before."""

    def __init__(self, number: int) -> None:
        self.loaded: list[str] = []
        self.items: list[Item] = []
        self.turns: dict[str, Turn] = {}
        for i in range(number):
            response = response_id(f"{i:0{RANDOM_DIGITS}x}")
            self.items = [*self.items, text_item(f"{i}", item_id=ItemIds(response)("msg"))]
            self.turns[response] = turn(response, self.items)

    async def load(self, response: str) -> Turn | None:
        self.loaded.append(response)
        return self.turns.get(response)


async def test_one_turn_has_all_items_of_its_conversation() -> None:
    stored = Stored(100)
    request = ResponseCreate(input=[ItemReference(item["id"]) for item in stored.items])
    found = await resolve(request, None, stored.load)
    assert [found[item["id"]] for item in stored.items] == stored.items
    assert len(stored.loaded) == 1


async def test_an_item_of_the_previous_response_needs_no_loading() -> None:
    stored = Stored(2)
    previous = [*stored.turns.values()][-1]
    assert await resolve(ResponseCreate(input=[ItemReference(stored.items[0]["id"])]), previous, stored.load)
    assert stored.loaded == []


async def test_an_unknown_item_is_named_and_the_number_of_loaded_responses_is_bounded() -> None:
    stored = Stored(1)
    ids = [ItemIds(response_id(f"{i:0{RANDOM_DIGITS}x}"))("msg") for i in range(MAX_LOADED + 5)]
    with pytest.raises(ItemNotFoundError) as missing:
        await resolve(ResponseCreate(input=[ItemReference(ids[0]), ItemReference(ids[7])]), None, stored.load)
    assert missing.value.param == "input[1].id"

    async def alone(response: str) -> Turn | None:
        return turn(response, [text_item("x", item_id=ItemIds(response)("msg"))])

    with pytest.raises(InvalidRequestError, match=f"{MAX_LOADED} responses"):
        await resolve(ResponseCreate(input=[ItemReference(item) for item in ids]), None, alone)


async def test_a_small_request_cannot_refer_to_one_long_item_until_memory_is_full() -> None:
    response = response_id("0" * RANDOM_DIGITS)
    item = text_item("x" * (MAX_REFERENCED // 4), item_id=ItemIds(response)("msg"))
    previous = turn(response, [item])

    async def none(_: str) -> Turn | None:
        return None

    assert await resolve(ResponseCreate(input=[ItemReference(item["id"])] * 3), previous, none)
    with pytest.raises(InvalidRequestError, match="referenced items") as refused:
        await resolve(ResponseCreate(input=[ItemReference(item["id"])] * 4), previous, none)
    assert refused.value.param == "input"
