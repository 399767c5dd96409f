"""Reports of the progress of a prompt: only to clients that ask for them, and not too often."""

from __future__ import annotations

import pytest

from gateway.protocol.events import Event, InProgress
from gateway.protocol.log import EventLog, Reader
from gateway.protocol.requests import ResponseCreate
from gateway.protocol.response_events import ResponseEvents
from gateway.responses import progress
from gateway.responses.progress import PromptProgressReport


def builder(request: ResponseCreate) -> ResponseEvents:
    return ResponseEvents(
        request, response_id="resp_1", model="m", clock=lambda: 0.0, temperature=0.0, top_p=1.0, max_output_tokens=9
    )


def reported(*, wanted: bool | None, updates: tuple[int, ...]) -> list[dict[str, int] | None]:
    request, sent = ResponseCreate(return_progress=wanted), list[Event]()
    report = PromptProgressReport(request, 100, builder(request), sent.append)
    for processed in updates:
        report.update(processed)
    return [event.prompt_progress for event in sent if isinstance(event, InProgress)]


@pytest.mark.parametrize("wanted", [None, False])
def test_progress_is_reported_only_on_request(wanted: bool | None) -> None:
    assert reported(wanted=wanted, updates=(10, 20)) == []


def test_progress_is_not_reported_with_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "PROGRESS_EVERY", 1e9)
    assert reported(wanted=True, updates=(10, 20, 30)) == [{"processed": 10, "total": 100}]
    monkeypatch.setattr(progress, "PROGRESS_EVERY", 0.0)
    assert len(reported(wanted=True, updates=(10, 20, 30))) == 3


def test_a_slow_reader_gets_only_the_latest_progress() -> None:
    events, log = builder(ResponseCreate()), EventLog()
    for event in (events.in_progress(), events.prompt_progress(10, 100), events.prompt_progress(20, 100)):
        log.append(event)
    reader = Reader(log)
    first, second = reader.next(), reader.next()
    assert isinstance(first, InProgress)
    assert isinstance(second, InProgress)
    assert (first.prompt_progress, first.sequence_number) == (None, 0)
    assert (second.prompt_progress, second.sequence_number) == ({"processed": 20, "total": 100}, 2)
    assert reader.next() is None
