"""Lanes, event logs and outboxes without a socket: which requests may start, and what a slow client gets."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import ApiError, InvalidRequestError, QueueFullError
from gateway.protocol.events import ArgumentsDelta, Completed, Created, Event, Queued, TextDelta, refusal
from gateway.protocol.lanes import Backlog, Lanes
from gateway.protocol.log import MERGED, EventLog, Reader
from gateway.protocol.outbox import NOTICE_BYTES, NOTICES, Outbox
from gateway.protocol.steering import SteerError, failed

LANE = st.sampled_from([None, "a", "b", "c"])
WORDS = st.text(max_size=20)


def delta(text: str, item: str = "msg_1") -> Event:
    return TextDelta(output_index=0, item_id=item, content_index=0, delta=text, logprobs=[])


def created() -> Event:
    return Created(response={})


def completed() -> Event:
    return Completed(response={})


@given(st.lists(st.tuples(LANE, st.booleans()), max_size=60))
def test_a_lane_is_first_in_first_out_and_holds_one_at_a_time(moves: list[tuple[str | None, bool]]) -> None:
    lanes: Lanes[int] = Lanes(active=2, pending=100)
    active: dict[str | None, int] = {}
    started: dict[str | None, list[int]] = {}
    for number, (lane, ends) in enumerate(moves):
        lanes.add(lane, number)
        if ends and active:
            ended = next(iter(active))
            del active[ended]
            lanes.end(ended)
        while (next_one := lanes.begin()) is not None:
            assert next_one[0] not in active
            active[next_one[0]] = next_one[1]
            started.setdefault(next_one[0], []).append(next_one[1])
        assert len(active) <= 2
    while active:
        ended = next(iter(active))
        del active[ended]
        lanes.end(ended)
        while (next_one := lanes.begin()) is not None:
            active[next_one[0]] = next_one[1]
            started.setdefault(next_one[0], []).append(next_one[1])
    assert lanes.idle
    assert started == {
        lane: numbers
        for lane in {lane for lane, _ in moves}
        if (numbers := [number for number, (other, _) in enumerate(moves) if other == lane])
    }


def test_a_busy_lane_does_not_delay_another() -> None:
    lanes: Lanes[str] = Lanes()
    for lane, request in (("a", "first"), ("a", "second"), ("b", "third")):
        lanes.add(lane, request)
    assert [lanes.begin(), lanes.begin(), lanes.begin()] == [("a", "first"), ("b", "third"), None]


def test_lanes_and_waiting_requests_are_bounded() -> None:
    lanes: Lanes[int] = Lanes(named=2, pending=4)
    for lane in ("a", "b", None, "a"):
        lanes.add(lane, 0)
    refusals: list[ApiError] = []
    for lane in ("c", "a"):
        try:
            lanes.add(lane, 0)
        except ApiError as error:
            refusals.append(error)
    assert [type(error) for error in refusals] == [InvalidRequestError, QueueFullError]
    assert refusals[0].param == "stream_id"


def test_waiting_bytes_are_bounded_per_connection_owner_and_gateway() -> None:
    backlog = Backlog(owner=150, gateway=250)

    def room(lanes: Lanes[str], size: int) -> bool:
        try:
            lanes.add("a", "x", size)
        except QueueFullError:
            return False
        return True

    def connection(owner: str) -> Lanes[str]:
        lanes: Lanes[str] = Lanes(size=100, backlog=backlog, owner=owner)
        assert room(lanes, 1000)  # this one need not wait
        assert lanes.begin() == ("a", "x")
        return lanes

    first, second, third = (connection(owner) for owner in ("anna", "anna", "bert"))
    assert [room(first, 60), room(first, 41), room(first, 40)] == [True, False, True]  # at most 100 of one connection
    assert [room(second, 51), room(second, 50)] == [False, True]  # at most 150 of anna
    assert room(third, 100)  # at most 250 in total
    fourth = connection("carl")
    assert not room(fourth, 1)
    first.end("a")
    assert first.begin() == ("a", "x")  # frees 60
    assert room(fourth, 60)
    assert not room(fourth, 1)
    for lanes in (first, second, third, fourth):
        lanes.clear()
    assert all(room(connection(owner), 100) for owner in ("anna", "bert"))


def read_all(reader: Reader) -> list[Event]:
    events = []
    while (event := reader.next()) is not None:
        events.append(event)
    return events


@given(st.lists(st.tuples(WORDS, st.booleans(), st.booleans()), max_size=50))
def test_a_reader_at_any_pace_gets_the_whole_text_in_rising_order(pieces: list[tuple[str, bool, bool]]) -> None:
    log = EventLog()
    reader = Reader(log, stream_id="a")
    got: list[Event] = []
    log.append(created())
    for text, other_item, reads in pieces:
        log.append(delta(text, "msg_2" if other_item else "msg_1"))
        if reads and (event := reader.next()) is not None:
            got.append(event)
    log.append(completed())
    got += read_all(reader)
    said = [(event.item_id, event.delta) for event in got if isinstance(event, TextDelta)]
    for item in ("msg_1", "msg_2"):
        whole = "".join(text for text, other, _ in pieces if other == (item == "msg_2"))
        assert "".join(text for name, text in said if name == item) == whole
    assert said == merged_like(said, pieces)
    numbers = [event.sequence_number or 0 for event in got]
    assert numbers == sorted(set(numbers))
    assert [got[0].type, got[-1].type] == ["response.created", "response.completed"]
    assert all(event.stream_id == "a" for event in got)
    assert reader.done


def merged_like(said: list[tuple[str, str]], pieces: list[tuple[str, bool, bool]]) -> list[tuple[str, str]]:
    """Merge the pieces where `said` merged them: deltas of two items never change their order."""
    rest = [("msg_2" if other else "msg_1", text) for text, other, _ in pieces]
    merged = []
    for item, text in said:
        whole = ""
        while rest and rest[0][0] == item and len(whole) < len(text):
            whole += rest.pop(0)[1]
        while rest and not rest[0][1] and rest[0][0] == item and whole == text:
            rest.pop(0)
        merged.append((item, whole))
    return merged


def test_a_slow_reader_gets_merged_deltas_and_only_the_latest_queue_position() -> None:
    log = EventLog()
    for position in (3, 2):
        log.append(Queued(response={}, queue_position=position, estimated_wait_seconds=1.0))
    for text in ("a", "b", "c"):
        log.append(delta(text))
    first, second = read_all(Reader(log))
    assert isinstance(first, Queued)
    assert (first.queue_position, first.sequence_number) == (2, 1)
    assert isinstance(second, TextDelta)
    assert (second.delta, second.sequence_number) == ("abc", 4)


def test_merged_deltas_keep_the_log_probabilities_of_all_their_tokens() -> None:
    log = EventLog()
    for number in range(3):
        log.append(
            TextDelta(output_index=0, item_id="msg_1", content_index=0, delta="x", logprobs=[{"logprob": -number}])
        )
    [merged] = read_all(Reader(log))
    assert isinstance(merged, TextDelta)
    assert merged.logprobs == [{"logprob": 0}, {"logprob": -1}, {"logprob": -2}]


def test_a_merged_delta_has_a_limited_length() -> None:
    log = EventLog(size=1 << 20)
    for _ in range(3):
        log.append(ArgumentsDelta(output_index=0, item_id="fc_1", delta="x" * (MERGED // 2)))
    first, second = read_all(Reader(log))
    assert isinstance(first, ArgumentsDelta)
    assert isinstance(second, ArgumentsDelta)
    assert [len(first.delta), len(second.delta)] == [MERGED, MERGED // 2]


@given(st.integers(0, 9))
def test_a_reader_can_start_after_any_event(after: int) -> None:
    log = EventLog()
    for text in "abcdefghij":
        log.append(delta(text))
    read = read_all(Reader(log, after=after))
    assert "".join(event.delta for event in read if isinstance(event, TextDelta)) == "abcdefghij"[after + 1 :]


def test_a_log_is_bounded_in_events_and_bytes_and_a_lagging_reader_gets_only_the_last_event() -> None:
    for log, text in ((EventLog(events=4), "x"), (EventLog(size=4000), "x" * 500)):
        reader, lagged = Reader(log), []
        for _ in range(100):
            log.append(delta(text))
            lagged.append(reader.lagging)
        assert lagged[0] is False
        assert lagged[-1] is True
        assert log.size <= 4000
        assert reader.next() is None
        log.append(completed())
        assert [event.type for event in read_all(reader)] == ["response.completed"]
        assert reader.done


def outbox() -> tuple[Outbox, list[Reader], list[Reader]]:
    lagging: list[Reader] = []
    done: list[Reader] = []
    return Outbox(lambda: None, lagging.append, done.append), lagging, done


def test_an_outbox_alternates_between_responses_and_reports_when_each_is_done() -> None:
    box, _, done = outbox()
    logs = {lane: EventLog() for lane in "ab"}
    for lane, log in logs.items():
        box.attach(Reader(log, stream_id=lane))
        for event in (created(), delta("x"), completed()):
            log.append(event)
    sent = [event for event in iter(box.next, None) if isinstance(event, Event)]
    assert [event.stream_id for event in sent] == list("ababab")
    assert [reader.stream_id for reader in done] == ["a", "b"]
    assert box.empty


def test_an_outbox_reports_a_lagging_reader_before_it_reads() -> None:
    box, lagging, _ = outbox()
    log = EventLog(events=3)
    box.attach(Reader(log))
    for _ in range(3):
        log.append(delta("x"))
    assert lagging == []
    log.append(delta("x"))
    assert len(lagging) == 1


def test_an_outbox_is_full_when_too_many_notices_wait() -> None:
    box, _, _ = outbox()
    for _ in range(NOTICES):
        assert not box.full
        box.add_notice(refusal(ApiError("x")))
    assert box.full
    box.next()
    assert not box.full


def test_an_outbox_is_full_when_its_notices_are_long() -> None:
    box, _, _ = outbox()
    box.add_notice(
        failed(SteerError("x", "x"), {"previous_response_id": "", "input": "x" * (NOTICE_BYTES - 200)}, number=0)
    )
    assert not box.full
    box.add_notice(failed(SteerError("x", "x"), {"previous_response_id": "", "input": "x" * 200}, number=0))
    assert box.full


def test_a_failing_watcher_neither_ends_the_response_nor_skips_other_watchers() -> None:
    faults: list[Exception] = []
    log, seen = EventLog(on_fault=faults.append), []

    def fails() -> None:
        raise ValueError("x")

    log.watchers = {fails, lambda: seen.append(log.end)}
    log.append(created())
    log.append(completed())
    assert seen == [1, 2]
    assert len(faults) == 2


@pytest.mark.parametrize("event", [created(), delta("x")])
def test_no_event_follows_the_terminal_event(event: Event) -> None:
    log = EventLog()
    log.append(completed())
    with pytest.raises(AssertionError):
        log.append(event)
