"""Conversations that several devices change at the same time, and the changes that wait for a slow reader."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.conversations.conversation import Conversation, Entry
from gateway.conversations.feed import MAX_PENDING, Feed, ListChanged

IDS = st.sampled_from([f"resp_{n}" for n in range(4)])
TIMES = st.integers(0, 3)
ENTRIES = st.builds(Entry, IDS, st.none(), st.just(0), st.integers(0, 1), st.just(1))
CONVERSATIONS = st.builds(
    Conversation,
    id=st.just("conv_1"),
    created_at=TIMES,
    updated_at=TIMES,
    metadata=st.dictionaries(st.just("title"), st.sampled_from("ab"), max_size=1),
    metadata_at=TIMES,
    draft=st.sampled_from(["", "x"]),
    draft_at=TIMES,
    head=st.none() | IDS,
    head_at=TIMES,
    entries=st.lists(ENTRIES, max_size=3, unique_by=lambda entry: entry.id),
)


def chain(*sizes: tuple[int, int]) -> Conversation:
    """A conversation whose turns have so many items from before and so many of their own."""
    conversation = Conversation(id="conv_1", created_at=0, updated_at=0)
    for number, (start, size) in enumerate(sizes):
        previous = f"resp_{number - 1}" if number else None
        entry = Entry(f"resp_{number}", previous, start, size, number)
        conversation = conversation.with_entry(entry, now=number)
    return conversation


@given(CONVERSATIONS, CONVERSATIONS, CONVERSATIONS)
def test_gateways_reach_the_same_state_in_whatever_order_they_hear_of_changes(
    one: Conversation, two: Conversation, three: Conversation
) -> None:
    merged = one.merged(two).merged(three)
    assert merged == three.merged(one.merged(two)) == one.merged(two.merged(three)) == two.merged(three).merged(one)
    assert merged.merged(merged) == merged.merged(two) == merged


def test_a_turn_is_redundant_once_a_later_one_holds_all_of_its_items() -> None:
    assert chain((0, 2), (2, 2), (4, 0)).members() == [("resp_0", True), ("resp_1", False), ("resp_2", False)]
    truncated = chain((0, 2), (2, 2), (2, 2))
    assert truncated.members() == [("resp_0", True), ("resp_1", False), ("resp_2", False)]


def test_a_path_leads_from_the_head_to_the_first_turn() -> None:
    conversation = chain((0, 2), (2, 2), (4, 2)).with_entry(Entry("resp_x", "resp_0", 2, 2, 9), now=9)
    assert [entry.id for entry in conversation.path()] == ["resp_x", "resp_0"]
    assert [entry.id for entry in conversation.path("resp_2")] == ["resp_2", "resp_1", "resp_0"]
    assert conversation.leaves() == ["resp_x", "resp_2"]


def test_changes_of_one_conversation_are_told_once_and_those_of_others_not_at_all() -> None:
    feed, woken = Feed(), list[int]()
    mine = feed.subscribe("anna", lambda: woken.append(1))
    for conversation, gone in (("conv_1", False), ("conv_2", False), ("conv_1", True)):
        feed.publish("anna", conversation, gone=gone)
    feed.publish("bert", "conv_3", gone=False)
    assert len(woken) == 3
    assert [mine.take(), mine.take(), mine.take()] == [("conv_1", True), ("conv_2", False), None]
    feed.unsubscribe(mine)
    feed.publish("anna", "conv_1", gone=False)
    assert mine.take() is None


def test_the_changes_that_wait_for_a_slow_reader_are_bounded() -> None:
    feed = Feed()
    mine = feed.subscribe("anna", lambda: None)
    for number in range(2 * MAX_PENDING):
        feed.publish("anna", f"conv_{number}", gone=False)
    assert isinstance(mine.take(), ListChanged)
    feed.publish("anna", "conv_x", gone=False)
    assert [mine.take(), mine.take()] == [("conv_x", False), None]
