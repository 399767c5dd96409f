"""Conversations that go on, as the metrics count them."""

from __future__ import annotations

from gateway.observability.activity import WITHIN, Activity


def test_a_conversation_counts_once_until_it_is_left_alone() -> None:
    now = 0.0
    activity = Activity(lambda: now)
    activity.turn(None, "a1")
    activity.turn(None, "b1")
    now = WITHIN
    activity.turn("a1", "a2")
    assert len(activity) == 2
    now = WITHIN + 1
    assert len(activity) == 1
    now = 2 * WITHIN + 1
    assert len(activity) == 0
