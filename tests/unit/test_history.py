"""The last hour of the monitor's figures: sampled, added up over labels, and bounded."""

from __future__ import annotations

from gateway.observability.history import EVERY, SAMPLES, SERIES, History
from gateway.observability.metrics import Metrics


def test_the_history_keeps_an_hour_of_the_series_that_the_page_draws() -> None:
    now, metrics = 0.0, Metrics()
    history = History(metrics.registry, lambda: now)
    assert history.body() == {"every": EVERY, "ages": [], "series": []}
    for number in range(SAMPLES + 5):
        metrics.waiting.set(number)
        metrics.generated.inc(2)
        metrics.ttft.labels("hit").observe(0.3)
        metrics.ttft.labels("miss").observe(3)
        history.sample()
        now += EVERY
    body = history.body()
    assert body["ages"] == [EVERY * ago for ago in range(SAMPLES, 0, -1)]
    assert {one["name"] for one in body["series"]} == SERIES.keys() - {"samovar_engine_restarts_total"}  # no engines
    values = {(one["name"], one["labels"].get("le")): one["values"] for one in body["series"]}
    assert {len(one) for one in values.values()} == {SAMPLES}
    assert values["samovar_requests_waiting", None][-1] == SAMPLES + 4
    assert values["samovar_generation_tokens_total", None][0] == 12
    bucket = "samovar_time_to_first_token_seconds_bucket"
    assert [values[bucket, le][0] for le in ("0.25", "0.5", "2.5", "+Inf")] == [0, 6, 6, 12]
    assert len(values) < 30
