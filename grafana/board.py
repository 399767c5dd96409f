"""The dashboard: seven questions, in the order in which an administrator asks them when users report slowness."""

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
"""Time range of the tiles that count failures."""
ENGINE: Final = "{{instance}} #{{engine}}"
"""Legend of an engine's series."""
LEARNED_STEP: Final = "{{rows}}: {{engines}} × {{threads}}"
"""Legend of the series of a step width."""
ALERTS: Final = 'ALERTS{alertname=~"Samovar.+",alertstate="firing"}'

WELL: Final = Row(
    "Is everything OK?",
    "All green: nothing to do. The description of a tile that is not green names the row to look at.",
    (
        Panel(
            "Gateways",
            "Gateways that Prometheus can reach. Zero: the gateway is down, or Prometheus cannot reach its port.",
            (Query(f"count({metric('build_info')}) or vector(0)", "gateways"),),
            look="tile",
            width=3,
            steps=Steps(1, 1, falling=True),
        ),
        Panel(
            "Alerts",
            "Firing alerts of grafana/rules; the last row lists them.",
            (Query(f"count({ALERTS}) or vector(0)", "alerts"),),
            look="tile",
            width=3,
            steps=Steps(1, 1),
        ),
        Panel(
            "Failed engines",
            "Engines that crashed or cannot load their model. See: What failed?",
            (Query(total(metric("engine_state", 'state="failed"', engine=True)), "engines"),),
            look="tile",
            width=3,
            steps=Steps(1, 1),
        ),
        Panel(
            "Store",
            "Whether KV blocks can be read and written. If not, prompts are recomputed. See: What does the cache save?",
            (Query(f"min({metric('store_up')})", "store"),),
            look="tile",
            width=3,
            words=((0, "down", "red"), (1, "up", "green")),
        ),
        Panel(
            "Queue usage",
            "Share of queue_limit in use, on the fullest gateway; requests above it are rejected. See the next row.",
            (
                Query(
                    f"max({metric('requests_waiting')} / on (job, instance) {metric('limit', named('queue_limit'))})",
                    "usage",
                ),
            ),
            unit="percentunit",
            look="tile",
            width=3,
            steps=Steps(0.5, 0.9),
        ),
        Panel(
            "Time to first token, p95",
            "95 % of answers started within this time, including the queue. See: How fast does it feel?",
            (Query(quantile(0.95, "time_to_first_token_seconds"), "p95"),),
            unit="s",
            look="tile",
            width=3,
            steps=Steps(3, 10),
        ),
        Panel(
            "Failed answers",
            "Answers that failed after they were accepted, in the last 15 minutes. See: What failed?",
            (Query(total(increase("requests_total", 'status="failed"', over=QUARTER)), "answers"),),
            look="tile",
            width=3,
            steps=Steps(1, 5),
        ),
        Panel(
            "Tokens per second",
            "Total of all answers.",
            (Query(total(rate("generation_tokens_total")), "tokens"),),
            look="tile",
            width=3,
        ),
    ),
)

WAITING: Final = Row(
    "Are requests waiting, and why?",
    "A short, moving queue is normal. If it grows: are all engines busy, are KV cells full, or is an engine loading?",
    (
        Panel(
            "Queued requests",
            "Requests that wait for an engine. Dashed: queue_limit; further requests are rejected.",
            (Query(total(metric("requests_waiting")), "waiting"), limit("queue_limit", "limit")),
        ),
        Panel(
            "Running requests",
            "Requests with an engine. Dashed: the maximum of concurrent requests; further ones wait.",
            (Query(total(metric("requests_running")), "running"), limit("running", "limit")),
        ),
        Panel(
            "Queue time",
            "Of requests that got an engine. Dashed: queue_timeout, after which a request fails.",
            (*percentiles("queue_seconds", 50, 95), limit("queue_timeout", "limit", "max")),
            unit="s",
        ),
        Panel(
            "Engines by state",
            "All busy: add cores or reduce load. Loading: the first request after an idle unload waits for the model.",
            (Query(total(metric("engine_state", engine=True), "state"), "{{state}}"),),
            look="stack",
        ),
        Panel(
            "KV cells in use",
            "A request waits until its tokens fit: near 100 %, requests queue for KV cells; engine_memory adds cells.",
            (
                Query(
                    f"{metric('kv_cells_used', engine=True)} / {metric('kv_cells_total', engine=True)}",
                    ENGINE,
                ),
            ),
            unit="percentunit",
        ),
        Panel(
            "Users",
            "Conversations with a turn in the last five minutes, and open connections.",
            (
                Query(total(metric("sessions_active")), "conversations"),
                Query(total(metric("websocket_connections")), "connections"),
            ),
        ),
    ),
)

FAST: Final = Row(
    "How fast does it feel?",
    "A first token within 2 s and gaps below 0.2 s read well. The upper curves are the slower requests.",
    (
        Panel(
            "Time to first token",
            "From the arrival of the request to the first token, including the queue.",
            percentiles("time_to_first_token_seconds", 50, 95, 99),
            unit="s",
        ),
        Panel(
            "Time to first token, by cache result",
            "Median. Curves far apart: the cache works, and cache misses dominate the wait.",
            (Query(quantile(0.5, "time_to_first_token_seconds", "cache"), "{{cache}}"),),
            unit="s",
        ),
        Panel(
            "Time between tokens",
            "Smoothness of answers. Steps in p99: a long prompt was prefilled at the same time.",
            percentiles("inter_token_seconds", 50, 95, 99),
            unit="s",
        ),
        Panel(
            "Total time of answers",
            "From the arrival of the request to the last event; long answers take longer.",
            percentiles("request_seconds", 50, 95),
            unit="s",
        ),
        Panel(
            "Engine step time",
            "A step generates one token for each of its sequences: a lower bound of the time between tokens.",
            percentiles("engine_step_seconds", 50, 95),
            unit="s",
        ),
        Panel(
            "Batch size",
            "Mean number of sequences in a step. 1: answers take turns; more: answers are batched.",
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
    "Prompt tokens cached in an engine or the store are not computed, which saves most of the wait.",
    (
        Panel(
            "Source of prompt tokens",
            "computed: not cached. engine: still in its KV cells. store: fetched.",
            (Query(total(rate("prompt_tokens_total"), "source"), "{{source}}"),),
            look="stack",
        ),
        Panel(
            "Cached share of prompt tokens",
            "90 % or more for continued chats, 0 % for new chats and documents.",
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
            "Answers by cache result",
            "hit: the whole history was cached. Many misses in long conversations: cache_ttl or store is too small.",
            (Query(total(rate("time_to_first_token_seconds_count"), "cache"), "{{cache}}"),),
            look="stack",
        ),
        Panel(
            "Store operations",
            "Per second, by outcome.",
            (
                Query(
                    total(rate("store_operations_total"), "operation", "outcome") + " > 0",
                    "{{operation}} {{outcome}}",
                ),
            ),
        ),
        Panel(
            "Time of a store operation, p95",
            "A get times out after 0.3 s, when computing is faster.",
            (Query(quantile(0.95, "store_operation_seconds", "operation"), "{{operation}}"),),
            unit="s",
        ),
        Panel(
            "Store traffic",
            "Bytes per second. Blocks that are often put but never read waste space.",
            (Query(total(rate("store_bytes_total"), "operation"), "{{operation}}"),),
            unit="Bps",
        ),
    ),
)

USED: Final = Row(
    "What do the engines use?",
    "Below the dashed lines, usage is within the settings. Engines unload idle_unload seconds after the last answer.",
    (
        Panel(
            "Memory per engine",
            "Resident memory; shared weights count in each engine. Dashed: engine_memory.",
            (
                Query(total(metric("engine_resident_bytes", engine=True), "instance", "engine"), ENGINE),
                limit("engine_memory", "limit", "max"),
            ),
            unit="bytes",
        ),
        Panel(
            "Total memory",
            "Engines, with shared weights counted once, plus the gateway: the memory that the machine needs.",
            (
                Query(total(metric("engine_proportional_bytes", engine=True), "instance", "engine"), ENGINE),
                Query(total(metric("gateway_resident_bytes")), "gateway"),
            ),
            unit="bytes",
            look="stack",
        ),
        Panel(
            "CPU",
            "Cores used by the engines. Dashed: cores. Close to it for long: the machine is at its limit.",
            (
                Query(total(rate("engine_cpu_seconds_total", engine=True), "instance", "engine"), ENGINE),
                limit("cores", "limit"),
            ),
            look="stack",
        ),
        Panel(
            "Threads",
            "Threads that the dispatcher assigns to engines; never above the dashed line.",
            (
                Query(total(metric("engine_threads", engine=True), "instance", "engine"), ENGINE),
                limit("cores", "limit"),
            ),
            look="stack",
        ),
        Panel(
            "Load time",
            "From starting an engine to a loaded model. Slow: the weights were read from disk.",
            (Query(f"max by (instance, engine) ({metric('engine_load_seconds', engine=True)})", ENGINE),),
            unit="s",
        ),
        Panel(
            "Loads and unloads",
            "Many per minute: idle_unload is shorter than the pauses in which users think.",
            (
                # No two loads take the same time to the microsecond, so the changes of the load time count the loads.
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

LEARNED: Final = Row(
    "What has it learned about this machine?",
    "Every step corrects the expected times, from which the number of engines and the batch sizes follow.",
    (
        Panel(
            "Learned decode time",
            "Usual time of a step by sequences: engines × threads. All rise at once: others use the machine.",
            (Query(metric("learned_step_seconds", 'kind="decode"'), LEARNED_STEP),),
            unit="s",
        ),
        Panel(
            "Learned prefill time",
            "Usual time of a step by prompt tokens: engines × threads.",
            (Query(metric("learned_step_seconds", 'kind="prefill"'), LEARNED_STEP),),
            unit="s",
        ),
        Panel(
            "Draft tokens",
            "Tokens that a step computes in addition where an answer repeats its text. Accepted ones come free.",
            (
                Query(total(rate("spec_tokens_drafted_total")), "drafted"),
                Query(total(rate("spec_tokens_accepted_total")), "accepted"),
            ),
        ),
        Panel(
            "Steps learned from",
            "Including earlier runs. Few: the plan is still an estimate; samovar tune measures at once.",
            (Query(total(metric("cost_model_samples")), "steps"),),
            width=12,
        ),
        Panel(
            "Time in trials",
            "Share of step time. width: another batch size; engines: another number of engines.",
            (
                Query(
                    total(rate("trial_seconds_total"), "kind") + f" / scalar({total(rate('engine_step_seconds_sum'))})",
                    "{{kind}}",
                ),
            ),
            unit="percentunit",
            width=12,
        ),
    ),
)

FAILED: Final = Row(
    "What failed?",
    "Normally empty. docs/metrics.md explains the meaning of every alert and what to do.",
    (
        Panel(
            "Requests by result",
            "Per minute. incomplete: the answer reached its length limit. rejected: not accepted.",
            (Query("60 * " + total(rate("requests_total"), "status"), "{{status}}"),),
            look="stack",
        ),
        Panel(
            "Failed and rejected requests by code",
            "engine_unavailable: engines crash. queue_full, queue_timeout: overload. Others: errors of clients.",
            (
                Query(
                    total(increase("requests_total", 'status=~"failed|rejected"'), "status", "code") + " > 0",
                    "{{status}}: {{code}}",
                ),
            ),
            look="bars",
        ),
        Panel(
            "Restarts after crashes",
            "Answers continue in another engine after a pause. If it happens repeatedly, the log has the reason.",
            (
                Query(total(increase("engine_restarts_total", engine=True), "instance", "engine"), ENGINE),
                Query(total(increase("prompt_worker_restarts_total")), "prompt workers"),
            ),
            look="bars",
        ),
        Panel(
            "Failed store operations",
            "skipped: not attempted, because the store is down. full: no writes until there is space.",
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
        ),
        Panel(
            "Dropped turns",
            "Oldest turns deleted because stored conversations exceeded user_storage.",
            (Query(total(increase("dropped_turns_total")), "turns"),),
            look="bars",
        ),
        Panel(
            "Alerts",
            "When each alert fired.",
            (Query(f"max by (alertname, severity) ({ALERTS})", "{{alertname}}"),),
            look="states",
        ),
    ),
)

TITLE: Final = "Samovar"
ROWS: Final = (WELL, WAITING, FAST, SAVED, USED, LEARNED, FAILED)
