"""How often an engine sends tokens: often to a few readers, and not too often to many."""

from __future__ import annotations

import socket

import pytest

from engine.channel import Channel
from engine.worker import FLUSH_INTERVAL, UPDATES, flush_interval


@pytest.mark.parametrize("requests", range(1, 33))
def test_all_requests_together_get_a_bounded_number_of_updates_but_none_waits_long(requests: int) -> None:
    interval = flush_interval(requests)
    assert interval <= FLUSH_INTERVAL
    assert requests / interval <= UPDATES + 1e-9 or interval == FLUSH_INTERVAL


def test_a_channel_counts_the_requests_whose_tokens_it_has_collected() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        channel = Channel(ours)
        for request in (1, 2, 2):
            channel.send_token(request, 7, [])
        assert channel.collected == 2
        channel.send_tokens(2)
        assert channel.collected == 1
        channel.send_all_tokens()
        assert channel.collected == 0
