"""The board: six questions, in the order in which somebody asks them who was called because it is slow."""

from __future__ import annotations

from typing import Final

from grafana.panels import (
    Panel,
    Query,
    Row,
    Steps,
    increase,
    limit,
    metric,
    named,
    percentiles,
    quantile,
    rate,
    total,
)

QUARTER: Final = "15m"
"""What a tile looks back on that counts what failed."""
ENGINE: Final = "{{instance}} #{{engine}}"
"""What an engine's series is called."""
ALERTS: Final = 'ALERTS{alertname=~"Samovar.+",alertstate="firing"}'

WELL: Final = Row(
    "Is it well now?",
    "Green everywhere: nothing to do. A tile that is not green names the row to look at.",
    (
        Panel(
            "Gateways",
            "Gateways that Prometheus reaches. None: it is down, or its port is closed to Prometheus.",
            (Query(f"count({metric('build_info')}) or vector(0)", "gateways"),),
            look="tile",
            width=3,
            steps=Steps(1, 1, falling=True),
        ),
        Panel(
            "Alerts",
            "Alerts of grafana/rules that fire now; which ones, the last row tells.",
            (Query(f"count({ALERTS}) or vector(0)", "alerts"),),
            look="tile",
            width=3,
            steps=Steps(1, 1),
        ),
        Panel(
            "Engines failed",
            "Engines that crashed or cannot load their model. See: what failed.",
            (Query(total(metric("engine_state", 'state="failed"', engine=True)), "engines"),),
            look="tile",
            width=3,
            steps=Steps(1, 1),
        ),
        Panel(
            "Store",
            "Whether it gives and takes KV; while it is away, old conversations are encoded anew. See: what it saves.",
            (Query(f"min({metric('store_up')})", "store"),),
            look="tile",
            width=3,
            words=((0, "away", "red"), (1, "up", "green")),
        ),
        Panel(
            "Queue filled",
            "The fullest gateway's share of queue_limit; over it, requests are turned away. See: are people waiting.",
            (
                Query(
                    f"max({metric('requests_waiting')} / on (job, instance) {metric('limit', named('queue_limit'))})",
                    "filled",
                ),
            ),
            unit="percentunit",
            look="tile",
            width=3,
            steps=Steps(0.5, 0.9),
        ),
        Panel(
            "First token, p95",
            "19 of 20 answers began within this time, queue included. See: how fast does it feel.",
            (Query(quantile(0.95, "time_to_first_token_seconds"), "p95"),),
            unit="s",
            look="tile",
            width=3,
            steps=Steps(3, 10),
        ),
        Panel(
            "Failed answers",
            "Answers that began and failed in the last 15 minutes. See: what failed.",
            (Query(total(increase("requests_total", 'status="failed"', over=QUARTER)), "answers"),),
            look="tile",
            width=3,
            steps=Steps(1, 5),
        ),
        Panel(
            "Tokens a second",
            "Of all answers together.",
            (Query(total(rate("generation_tokens_total")), "tokens"),),
            look="tile",
            width=3,
        ),
    ),
)

WAITING: Final = Row(
    "Are people waiting, and why?",
    "A short queue that moves is normal. If it grows: are all engines busy, are their cells full, or is one loading?",
    (
        Panel(
            "In the queue",
            "Requests without an engine. Dashed: queue_limit, above which they are turned away.",
            (Query(total(metric("requests_waiting")), "waiting"), limit("queue_limit", "limit")),
        ),
        Panel(
            "At an engine",
            "Requests that are answered now. Dashed: as many as may run at once; at this line the next ones wait.",
            (Query(total(metric("requests_running")), "running"), limit("running", "limit")),
        ),
        Panel(
            "Wait for an engine",
            "Of those that got one. Dashed: queue_timeout, after which one that waits is sent away.",
            (*percentiles("queue_seconds", 50, 95), limit("queue_timeout", "limit", "max")),
            unit="s",
        ),
        Panel(
            "Engines by state",
            "All busy: more cores, or fewer people. Loading: the first request after idle_unload waits for the model.",
            (Query(total(metric("engine_state", engine=True), "state"), "{{state}}"),),
            look="stack",
        ),
        Panel(
            "KV cells in use",
            "A request waits until its tokens find room: near 100 % people wait for room. engine_memory gives more.",
            (
                Query(
                    f"{metric('kv_cells_used', engine=True)} / {metric('kv_cells_total', engine=True)}",
                    ENGINE,
                ),
            ),
            unit="percentunit",
        ),
        Panel(
            "People",
            "Conversations that had a turn in the last five minutes, and open connections.",
            (
                Query(total(metric("sessions_active")), "conversations"),
                Query(total(metric("websocket_connections")), "connections"),
            ),
        ),
    ),
)

FAST: Final = Row(
    "How fast does it feel?",
    "A first token within two seconds and gaps under a fifth of one read well. The upper lines are the unlucky ones.",
    (
        Panel(
            "First token",
            "From a request's arrival to its first word, queue included.",
            percentiles("time_to_first_token_seconds", 50, 95, 99),
            unit="s",
        ),
        Panel(
            "First token, by what the cache gave",
            "Half of the answers began within this time. Far apart: the cache works, and misses are what hurts.",
            (Query(quantile(0.5, "time_to_first_token_seconds", "cache"), "{{cache}}"),),
            unit="s",
        ),
        Panel(
            "Between two tokens",
            "How smoothly answers flow. Steps at p99: a long prompt was computed beside them.",
            percentiles("inter_token_seconds", 50, 95, 99),
            unit="s",
        ),
        Panel(
            "Whole answers",
            "From arrival to the last event; long answers take long.",
            percentiles("request_seconds", 50, 95),
            unit="s",
        ),
        Panel(
            "Steps of the engines",
            "A step gives one token to each of its sequences: this is the floor under the gaps.",
            percentiles("engine_step_seconds", 50, 95),
            unit="s",
        ),
        Panel(
            "Sequences in a step",
            "How many answers share a step on average: one means that engines take turns, many that they batch.",
            (
                Query(
                    total(rate("engine_batch_size_sum")) + " / " + total(rate("engine_batch_size_count")), "sequences"
                ),
            ),
        ),
    ),
)

SAVED: Final = Row(
    "What does the cache save?",
    "Every prompt token that comes from an engine or from the store need not be computed: that is most of the wait.",
    (
        Panel(
            "Prompt tokens, by where they came from",
            "computed: encoded anew. engine: still there. store: fetched.",
            (Query(total(rate("prompt_tokens_total"), "source"), "{{source}}"),),
            look="stack",
        ),
        Panel(
            "Share not computed",
            "Chats that go on reach 90 % and more; new ones, and documents, none.",
            (
                Query(
                    total(rate("prompt_tokens_total", 'source!="computed"'))
                    + " / "
                    + total(rate("prompt_tokens_total")),
                    "share",
                ),
            ),
            unit="percentunit",
        ),
        Panel(
            "Answers, by what the cache gave",
            "hit: all that was said before. Many misses in long conversations: cache_ttl or the store is too small.",
            (Query(total(rate("time_to_first_token_seconds_count"), "cache"), "{{cache}}"),),
            look="stack",
        ),
        Panel(
            "Calls of the store",
            "A second, by what came of them.",
            (
                Query(
                    total(rate("store_operations_total"), "operation", "outcome") + " > 0",
                    "{{operation}} {{outcome}}",
                ),
            ),
        ),
        Panel(
            "Time of a call, p95",
            "A get that takes longer than computing would (0.3 s) is given up.",
            (Query(quantile(0.95, "store_operation_seconds", "operation"), "{{operation}}"),),
            unit="s",
        ),
        Panel(
            "Bytes to and from the store",
            "A second. What is put again and again without a get is not worth its room.",
            (Query(total(rate("store_bytes_total"), "operation"), "{{operation}}"),),
            unit="Bps",
        ),
    ),
)

USED: Final = Row(
    "What do the engines use?",
    "Under the dashed lines all is as configured. Engines give memory back idle_unload after their last answer.",
    (
        Panel(
            "Memory of each engine",
            "Resident, shared weights counted in each. Dashed: engine_memory.",
            (
                Query(total(metric("engine_resident_bytes", engine=True), "instance", "engine"), ENGINE),
                limit("engine_memory", "limit", "max"),
            ),
            unit="bytes",
        ),
        Panel(
            "Memory in all",
            "Weights that engines share counted once, and the gateway itself: what the machine needs to have.",
            (
                Query(total(metric("engine_proportional_bytes", engine=True), "instance", "engine"), ENGINE),
                Query(total(metric("gateway_resident_bytes")), "gateway"),
            ),
            unit="bytes",
            look="stack",
        ),
        Panel(
            "Processors",
            "Cores that the engines keep busy. Dashed: cores. There for long: this is all that the machine gives.",
            (
                Query(total(rate("engine_cpu_seconds_total", engine=True), "instance", "engine"), ENGINE),
                limit("cores", "limit"),
            ),
            look="stack",
        ),
        Panel(
            "Threads",
            "As the dispatcher shares the cores out; never over the dashed line.",
            (
                Query(total(metric("engine_threads", engine=True), "instance", "engine"), ENGINE),
                limit("cores", "limit"),
            ),
            look="stack",
        ),
        Panel(
            "Last load",
            "From an engine's start to a loaded model. Slow: the weights came from the disk.",
            (Query(f"max by (instance, engine) ({metric('engine_load_seconds', engine=True)})", ENGINE),),
            unit="s",
        ),
        Panel(
            "Loads and unloads",
            "Engines that took their memory and gave it back. Many a minute: idle_unload is shorter than people think.",
            (
                # Each load takes another time, to the microsecond: as often as that changes, so many loads there were.
                Query(
                    f"sum(changes({metric('engine_load_seconds', engine=True)}[$__rate_interval]))",
                    "loads",
                ),
                Query(total(increase("engine_unloads_total", engine=True)), "unloads"),
            ),
            look="bars",
        ),
    ),
)

FAILED: Final = Row(
    "What failed?",
    "Nothing here is the normal case. docs/metrics.md tells for every alert what it means and what to do.",
    (
        Panel(
            "Requests, by how they ended",
            "A minute. incomplete: the answer reached its length. rejected: refused before it began.",
            (Query("60 * " + total(rate("requests_total"), "status"), "{{status}}"),),
            look="stack",
        ),
        Panel(
            "Failed and turned away, by code",
            "engine_unavailable: engines crash. queue_full, queue_timeout: too many people. Else: clients' mistakes.",
            (
                Query(
                    total(increase("requests_total", 'status=~"failed|rejected"'), "status", "code") + " > 0",
                    "{{status}}: {{code}}",
                ),
            ),
            look="bars",
        ),
        Panel(
            "Restarts after a crash",
            "Answers go on in another engine, so people see a pause. Again and again: see the log for the reason.",
            (Query(total(increase("engine_restarts_total", engine=True), "instance", "engine"), ENGINE),),
            look="bars",
        ),
        Panel(
            "Calls of the store that failed",
            "skipped: not tried, as the store is away. full: nothing is stored until there is room.",
            (
                Query(
                    total(
                        increase("store_operations_total", 'outcome=~"error|timeout|full|skipped|corrupt"'),
                        "operation",
                        "outcome",
                    )
                    + " > 0",
                    "{{operation}} {{outcome}}",
                ),
            ),
            look="bars",
            width=12,
        ),
        Panel(
            "Alerts",
            "When each one fired.",
            (Query(f"max by (alertname, severity) ({ALERTS})", "{{alertname}}"),),
            look="states",
            width=12,
        ),
    ),
)

TITLE: Final = "Samovar"
ROWS: Final = (WELL, WAITING, FAST, SAVED, USED, FAILED)
