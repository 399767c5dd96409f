"""The board in Chinese: every title, hint and legend of `board.py`, a line each."""

from __future__ import annotations

import re
from typing import Final

CHINESE: Final = {
    "Samovar": "Samovar 茶炊",
    "Data source": "数据源",
    "Gateway": "网关",
    "Engine": "引擎",
    "All": "全部",
    "The other language": "English",
    # Is it well now?
    "Is it well now?": "现在一切正常吗？",
    "Green everywhere: nothing to do. A tile that is not green names the row to look at.": (
        "全绿：无需处理。哪一格不是绿色，它的说明会指出该看哪一行。"
    ),
    "Gateways": "网关",
    "Gateways that Prometheus reaches. None: it is down, or its port is closed to Prometheus.": (
        "Prometheus 能访问到的网关数。为零：网关已停止，或端口对 Prometheus 不可达。"
    ),
    "Alerts": "告警",
    "Alerts of grafana/rules that fire now; which ones, the last row tells.": (
        "grafana/rules 中正在触发的告警数；具体是哪些，见最后一行。"
    ),
    "Engines failed": "故障引擎",
    "Engines that crashed or cannot load their model. See: what failed.": (
        "崩溃或无法加载模型的引擎数。见：哪里出了错？"
    ),
    "Store": "存储",
    "Whether it gives and takes KV; while it is away, old conversations are encoded anew. See: what it saves.": (
        "能否读写 KV。存储不可用时，旧对话会重新计算。见：缓存省了多少？"
    ),
    "away": "不可用",
    "up": "正常",
    "Queue filled": "队列占用",
    "The fullest gateway's share of queue_limit; over it, requests are turned away. See: are people waiting.": (
        "最满的网关占 queue_limit 的比例；满了之后请求会被拒绝。见：有人在等吗？"
    ),
    "First token, p95": "首个词元 p95",
    "19 of 20 answers began within this time, queue included. See: how fast does it feel.": (
        "95% 的回答在此时间内开始（含排队）。见：用起来快不快？"
    ),
    "Failed answers": "失败的回答",
    "Answers that began and failed in the last 15 minutes. See: what failed.": (
        "最近 15 分钟内开始后失败的回答数。见：哪里出了错？"
    ),
    "Tokens a second": "每秒词元数",
    "Of all answers together.": "所有回答合计。",
    # Are people waiting, and why?
    "Are people waiting, and why?": "有人在等吗？为什么？",
    "A short queue that moves is normal. If it grows: are all engines busy, are their cells full, or is one loading?": (
        "队列短而流动是正常的。若不断变长：是引擎全忙、KV 单元已满，还是正在加载模型？"
    ),
    "In the queue": "排队中",
    "Requests without an engine. Dashed: queue_limit, above which they are turned away.": (
        "尚未分到引擎的请求。虚线：queue_limit，超过即被拒绝。"
    ),
    "At an engine": "处理中",
    "Requests that are answered now. Dashed: as many as may run at once; at this line the next ones wait.": (
        "正在回答的请求。虚线：可同时处理的上限，到达后新请求须等待。"
    ),
    "Wait for an engine": "等待引擎的时间",
    "Of those that got one. Dashed: queue_timeout, after which one that waits is sent away.": (
        "已分到引擎的请求的等待时间。虚线：queue_timeout，超时的请求会被退回。"
    ),
    "Engines by state": "引擎状态",
    "All busy: more cores, or fewer people. Loading: the first request after idle_unload waits for the model.": (
        "全忙：需要更多核心，或更少的人。loading：空闲卸载后的第一个请求要等模型加载。"
    ),
    "KV cells in use": "已用 KV 单元",
    "A request waits until its tokens find room: near 100 % people wait for room. engine_memory gives more.": (
        "请求要等到有足够单元才能开始：接近 100% 时就会排队。调大 engine_memory 可增加。"
    ),
    "People": "使用者",
    "Conversations that had a turn in the last five minutes, and open connections.": (
        "最近五分钟内有往来的对话，以及打开的连接。"
    ),
    # How fast does it feel?
    "How fast does it feel?": "用起来快不快？",
    "A first token within two seconds and gaps under a fifth of one read well. The upper lines are the unlucky ones.": (
        "两秒内出首个词元、间隔不到 0.2 秒，读起来就顺畅。上面的线是运气较差的请求。"
    ),
    "First token": "首个词元",
    "From a request's arrival to its first word, queue included.": "从请求到达至第一个字，含排队。",
    "First token, by what the cache gave": "首个词元（按缓存命中）",
    "Half of the answers began within this time. Far apart: the cache works, and misses are what hurts.": (
        "一半的回答在此时间内开始。差距大：缓存有效，慢在未命中。"
    ),
    "Between two tokens": "词元间隔",
    "How smoothly answers flow. Steps at p99: a long prompt was computed beside them.": (
        "回答是否流畅。p99 突起：旁边正在计算一段长提示。"
    ),
    "Whole answers": "整个回答",
    "From arrival to the last event; long answers take long.": "从到达至最后一个事件；回答越长越久。",
    "Steps of the engines": "引擎每步时间",
    "A step gives one token to each of its sequences: this is the floor under the gaps.": (
        "每一步给每个序列一个词元：间隔不会低于它。"
    ),
    "Sequences in a step": "每步序列数",
    "How many answers share a step on average: one means that engines take turns, many that they batch.": (
        "平均几个回答共用一步：1 表示轮流，多则表示批处理。"
    ),
    # What does the cache save?
    "What does the cache save?": "缓存省了多少？",
    "Every prompt token that comes from an engine or from the store need not be computed: that is most of the wait.": (
        "来自引擎或存储的提示词元无需重新计算：等待时间大多就省在这里。"
    ),
    "Prompt tokens, by where they came from": "提示词元的来源",
    "computed: encoded anew. engine: still there. store: fetched.": (
        "computed：重新计算；engine：仍在引擎中；store：从存储取回。"
    ),
    "Share not computed": "免计算比例",
    "Chats that go on reach 90 % and more; new ones, and documents, none.": (
        "持续的对话可达 90% 以上；新对话和新文档为零。"
    ),
    "Answers, by what the cache gave": "回答（按缓存命中）",
    "hit: all that was said before. Many misses in long conversations: cache_ttl or the store is too small.": (
        "hit：之前说过的全部命中。长对话中 miss 很多：cache_ttl 太短或存储太小。"
    ),
    "Calls of the store": "存储调用",
    "A second, by what came of them.": "每秒次数，按结果。",
    "Time of a call, p95": "调用时间 p95",
    "A get that takes longer than computing would (0.3 s) is given up.": "读取若超过 0.3 秒（不如重新计算）即放弃。",
    "Bytes to and from the store": "存储读写字节",
    "A second. What is put again and again without a get is not worth its room.": (
        "每秒。只写不读的内容不值得占用空间。"
    ),
    # What do the engines use?
    "What do the engines use?": "引擎用了多少资源？",
    "Under the dashed lines all is as configured. Engines give memory back idle_unload after their last answer.": (
        "低于虚线即符合配置。最后一个回答之后经过 idle_unload，引擎归还内存。"
    ),
    "Memory of each engine": "每个引擎的内存",
    "Resident, shared weights counted in each. Dashed: engine_memory.": (
        "常驻内存，共享权重计入每个引擎。虚线：engine_memory。"
    ),
    "Memory in all": "内存合计",
    "Weights that engines share counted once, and the gateway itself: what the machine needs to have.": (
        "共享权重只计一次，加上网关自身：机器实际需要的内存。"
    ),
    "Processors": "处理器",
    "Cores that the engines keep busy. Dashed: cores. There for long: this is all that the machine gives.": (
        "引擎占用的核心数。虚线：cores。长期贴线：机器已到极限。"
    ),
    "Threads": "线程",
    "As the dispatcher shares the cores out; never over the dashed line.": "调度器分配的线程，绝不超过虚线。",
    "Last load": "最近一次加载",
    "From an engine's start to a loaded model. Slow: the weights came from the disk.": (
        "从引擎启动到模型加载完毕。较慢：权重来自磁盘。"
    ),
    "Loads and unloads": "加载与卸载",
    "Engines that took their memory and gave it back. Many a minute: idle_unload is shorter than people think.": (
        "引擎占用与归还内存的次数。每分钟很多次：idle_unload 比人们思考的时间还短。"
    ),
    # What failed?
    "What failed?": "哪里出了错？",
    "Nothing here is the normal case. docs/metrics.md tells for every alert what it means and what to do.": (
        "正常情况下这里是空的。每个告警的含义与处理办法见 docs/metrics.md。"
    ),
    "Requests, by how they ended": "请求（按结局）",
    "A minute. incomplete: the answer reached its length. rejected: refused before it began.": (
        "每分钟。incomplete：回答达到长度上限；rejected：开始前被拒绝。"
    ),
    "Failed and turned away, by code": "失败与被拒（按代码）",
    "engine_unavailable: engines crash. queue_full, queue_timeout: too many people. Else: clients' mistakes.": (
        "engine_unavailable：引擎崩溃；queue_full、queue_timeout：人太多；其余是客户端的错误。"
    ),
    "Restarts after a crash": "崩溃后重启",
    "Answers go on in another engine, so people see a pause. Again and again: see the log for the reason.": (
        "回答会在另一个引擎继续，使用者只感到停顿。反复出现：原因见日志。"
    ),
    "Calls of the store that failed": "失败的存储调用",
    "skipped: not tried, as the store is away. full: nothing is stored until there is room.": (
        "skipped：存储不可用，未尝试；full：存满，腾出空间前不再写入。"
    ),
    "When each one fired.": "各告警触发的时间。",
    # Legends
    "gateways": "网关",
    "alerts": "告警",
    "engines": "引擎",
    "store": "存储",
    "filled": "占用",
    "answers": "回答",
    "tokens": "词元",
    "waiting": "排队",
    "running": "处理中",
    "limit": "上限",
    "conversations": "对话",
    "connections": "连接",
    "sequences": "序列",
    "share": "比例",
    "gateway": "网关",
    "loads": "加载",
    "unloads": "卸载",
}
_SAME: Final = re.compile(r"(\{\{\w+\}\}|p\d+|[\s#:])+")
"""Legends that are the same in every language."""


def english(words: str) -> str:
    """As they are."""
    return words


def chinese(words: str) -> str:
    """In Chinese. Raises KeyError when that is not known."""
    return words if _SAME.fullmatch(words) else CHINESE[words]
