"""Chinese translations of every title, hint and legend of `board.py`."""

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
    # Is everything OK?
    "Is everything OK?": "现在一切正常吗？",
    "All green: nothing to do. The description of a tile that is not green names the row to look at.": (
        "全绿：无需处理。哪一格不是绿色，它的说明会指出该看哪一行。"
    ),
    "Gateways": "网关",
    "Gateways that Prometheus can reach. Zero: the gateway is down, or Prometheus cannot reach its port.": (
        "Prometheus 能访问到的网关数。为零：网关已停止，或端口对 Prometheus 不可达。"
    ),
    "Alerts": "告警",
    "Firing alerts of grafana/rules; the last row lists them.": (
        "grafana/rules 中正在触发的告警数；具体是哪些，见最后一行。"
    ),
    "Failed engines": "故障引擎",
    "Engines that crashed or cannot load their model. See: What failed?": (
        "崩溃或无法加载模型的引擎数。见：哪里出了错？"
    ),
    "Store": "存储",
    "Whether KV blocks can be read and written. If not, prompts are recomputed. See: What does the cache save?": (
        "能否读写 KV 块。存储不可用时，已有对话须重新计算。见：缓存省了多少？"
    ),
    "down": "不可用",
    "up": "正常",
    "Queue usage": "队列占用",
    "Share of queue_limit in use, on the fullest gateway; requests above it are rejected. See the next row.": (
        "最满的网关占 queue_limit 的比例；满了之后请求会被拒绝。见下一行。"
    ),
    "Time to first token, p95": "首字延迟 p95",
    "95 % of answers started within this time, including the queue. See: How fast does it feel?": (
        "95% 的回答在此时间内开始（含排队）。见：用起来快不快？"
    ),
    "Failed answers": "失败的回答",
    "Answers that failed after they were accepted, in the last 15 minutes. See: What failed?": (
        "最近 15 分钟内受理后失败的回答数。见：哪里出了错？"
    ),
    "Tokens per second": "词元/秒",
    "Total of all answers.": "所有回答合计。",
    # Are requests waiting, and why?
    "Are requests waiting, and why?": "有请求在等待吗？为什么？",
    "A short, moving queue is normal. If it grows: are all engines busy, are KV cells full, or is an engine loading?": (
        "队列短而流动是正常的。若不断变长：是引擎全忙、KV 单元已满，还是正在加载模型？"
    ),
    "Queued requests": "排队中",
    "Requests that wait for an engine. Dashed: queue_limit; further requests are rejected.": (
        "尚未分到引擎的请求。虚线：queue_limit，超过即被拒绝。"
    ),
    "Running requests": "回答中",
    "Requests with an engine. Dashed: the maximum of concurrent requests; further ones wait.": (
        "正在回答的请求。虚线：可同时回答的上限，达到后新请求须等待。"
    ),
    "Queue time": "排队时间",
    "Of requests that got an engine. Dashed: queue_timeout, after which a request fails.": (
        "已分到引擎的请求的排队时间。虚线：queue_timeout，超时的请求会被拒绝。"
    ),
    "Engines by state": "引擎状态",
    "All busy: add cores or reduce load. Loading: the first request after an idle unload waits for the model.": (
        "全忙：需要更多核心或降低负载。loading：空闲卸载后的第一个请求要等模型加载。"
    ),
    "KV cells in use": "已用 KV 单元",
    "A request waits until its tokens fit: near 100 %, requests queue for KV cells; engine_memory adds cells.": (
        "请求要等到有足够的 KV 单元才能开始：接近 100% 时就会排队。调大 engine_memory 可增加 KV 单元。"
    ),
    "Users": "用户",
    "Conversations with a turn in the last five minutes, and open connections.": (
        "最近五分钟内有往来的对话，以及打开的连接。"
    ),
    # How fast does it feel?
    "How fast does it feel?": "用起来快不快？",
    "A first token within 2 s and gaps below 0.2 s read well. The upper curves are the slower requests.": (
        "首字延迟在两秒以内、词元间隔不到 0.2 秒，读起来就顺畅。靠上的曲线是较慢的请求。"
    ),
    "Time to first token": "首字延迟",
    "From the arrival of the request to the first token, including the queue.": "从请求到达至第一个字，含排队。",
    "Time to first token, by cache result": "首字延迟（按缓存结果）",
    "Median. Curves far apart: the cache works, and cache misses dominate the wait.": (
        "中位数。差距大：缓存有效，慢在未命中。"
    ),
    "Time between tokens": "词元间隔",
    "Smoothness of answers. Steps in p99: a long prompt was prefilled at the same time.": (
        "回答是否流畅。p99 突起：同时正在预填充一段长提示词。"
    ),
    "Total time of answers": "回答总用时",
    "From the arrival of the request to the last event; long answers take longer.": (
        "从到达至最后一个事件；回答越长越久。"
    ),
    "Engine step time": "引擎每步用时",
    "A step generates one token for each of its sequences: a lower bound of the time between tokens.": (
        "每一步为每个序列生成一个词元：词元间隔不会低于它。"
    ),
    "Draft tokens": "草稿词元",
    "Tokens that a step computes in addition where an answer repeats its text. Accepted ones come free.": (
        "回答重复对话内容时，一步中额外计算的词元；被接受的无需另算。"
    ),
    "Batch size": "批大小",
    "Mean number of sequences in a step. 1: answers take turns; more: answers are batched.": (
        "每步的平均序列数：1 表示轮流，更大表示合批。"
    ),
    # What does the cache save?
    "What does the cache save?": "缓存省了多少？",
    "Prompt tokens cached in an engine or the store are not computed, which saves most of the wait.": (
        "来自引擎或存储的输入词元无需计算：等待时间大多就省在这里。"
    ),
    "Source of prompt tokens": "输入词元来源",
    "computed: not cached. engine: still in its KV cells. store: fetched.": (
        "computed：新计算；engine：仍在引擎中；store：从存储取回。"
    ),
    "Cached share of prompt tokens": "缓存命中率",
    "90 % or more for continued chats, 0 % for new chats and documents.": (
        "持续的对话可达 90% 以上；新对话和新文档为零。"
    ),
    "Answers by cache result": "回答（按缓存结果）",
    "hit: the whole history was cached. Many misses in long conversations: cache_ttl or store is too small.": (
        "hit：此前的内容全部命中。长对话中 miss 很多：cache_ttl 太短或存储太小。"
    ),
    "Store operations": "存储操作",
    "Per second, by outcome.": "每秒次数，按结果。",
    "Time of a store operation, p95": "存储操作用时 p95",
    "A get times out after 0.3 s, when computing is faster.": "读取超过 0.3 秒即放弃，此时重新计算更快。",
    "Store traffic": "存储流量",
    "Bytes per second. Blocks that are often put but never read waste space.": (
        "每秒字节数。反复写入却从不读取的内容是在浪费空间。"
    ),
    # What do the engines use?
    "What do the engines use?": "引擎用了多少资源？",
    "Below the dashed lines, usage is within the settings. Engines unload idle_unload seconds after the last answer.": (
        "低于虚线即符合设置。最后一个回答之后经过 idle_unload，引擎会被卸载。"
    ),
    "Memory per engine": "每个引擎的内存",
    "Resident memory; shared weights count in each engine. Dashed: engine_memory.": (
        "常驻内存，共享权重计入每个引擎。虚线：engine_memory。"
    ),
    "Total memory": "内存合计",
    "Engines, with shared weights counted once, plus the gateway: the memory that the machine needs.": (
        "共享权重只计一次，加上网关自身：机器实际需要的内存。"
    ),
    "CPU": "CPU",
    "Cores used by the engines. Dashed: cores. Close to it for long: the machine is at its limit.": (
        "引擎占用的核心数。虚线：cores。长期贴线：机器已到极限。"
    ),
    "Threads": "线程",
    "Threads that the dispatcher assigns to engines; never above the dashed line.": "调度器分配的线程，绝不超过虚线。",
    "Load time": "加载用时",
    "From starting an engine to a loaded model. Slow: the weights were read from disk.": (
        "从引擎启动到模型加载完毕。较慢：权重来自磁盘。"
    ),
    "Loads and unloads": "加载与卸载",
    "Many per minute: idle_unload is shorter than the pauses in which users think.": (
        "每分钟很多次：idle_unload 比用户思考的间隔还短。"
    ),
    # What has it learned about this machine?
    "What has it learned about this machine?": "对本机学到了什么？",
    "Every step corrects the expected times, from which the number of engines and the batch sizes follow.": (
        "每一步都会修正预计用时；引擎数与批大小由此决定。"
    ),
    "Learned decode time": "学到的解码用时",
    "Usual time of a step by sequences: engines × threads. All rise at once: others use the machine.": (
        "每步的通常用时，按序列数：引擎 × 线程。同时上升：其他进程在占用本机。"
    ),
    "Learned prefill time": "学到的预填充用时",
    "Usual time of a step by prompt tokens: engines × threads.": "每步的通常用时，按输入词元数：引擎 × 线程。",
    "Steps learned from": "用于学习的步数",
    "Including earlier runs. Few: the plan is still an estimate; samovar tune measures at once.": (
        "含此前的运行。很少：运行方案仍是估计；samovar tune 可立即实测。"
    ),
    "Time in trials": "试验用时",
    "Share of step time. width: another batch size; engines: another number of engines.": (
        "占每步用时的比例。width：试另一种批大小；engines：试另一种引擎数。"
    ),
    # What failed?
    "What failed?": "哪里出了错？",
    "Normally empty. docs/metrics.md explains the meaning of every alert and what to do.": (
        "正常情况下这里是空的。每个告警的含义与处理办法见 docs/metrics.md。"
    ),
    "Requests by result": "请求（按结果）",
    "Per minute. incomplete: the answer reached its length limit. rejected: not accepted.": (
        "每分钟。incomplete：回答达到长度上限；rejected：未被受理。"
    ),
    "Failed and rejected requests by code": "失败与被拒（按错误码）",
    "engine_unavailable: engines crash. queue_full, queue_timeout: overload. Others: errors of clients.": (
        "engine_unavailable：引擎崩溃；queue_full、queue_timeout：请求过多；其余是客户端的错误。"
    ),
    "Restarts after crashes": "崩溃后重启",
    "Answers continue in another engine after a pause. If it happens repeatedly, the log has the reason.": (
        "回答会在另一个引擎继续，用户只感到停顿。反复出现：原因见日志。"
    ),
    "Failed store operations": "失败的存储操作",
    "skipped: not attempted, because the store is down. full: no writes until there is space.": (
        "skipped：存储不可用，未尝试；full：存满，腾出空间前不再写入。"
    ),
    "Dropped turns": "已删除的轮次",
    "Oldest turns deleted because stored conversations exceeded user_storage.": "因对话超出 user_storage 而删除。",
    "When each alert fired.": "各告警触发的时间。",
    # Legends
    "gateways": "网关",
    "alerts": "告警",
    "engines": "引擎",
    "store": "存储",
    "usage": "占用",
    "answers": "回答",
    "tokens": "词元",
    "waiting": "排队",
    "running": "回答中",
    "limit": "上限",
    "conversations": "对话",
    "connections": "连接",
    "drafted": "草稿",
    "accepted": "接受",
    "sequences": "序列",
    "steps": "步",
    "share": "比例",
    "gateway": "网关",
    "loads": "加载",
    "turns": "轮次",
    "prompt workers": "提示词进程",
    "unloads": "卸载",
}
_SAME: Final = re.compile(r"(\{\{\w+\}\}|p\d+|[\s#:×])+")
"""Matches legends that are the same in every language."""


def english(words: str) -> str:
    """Return `words` unchanged."""
    return words


def chinese(words: str) -> str:
    """Return the Chinese translation of `words`. Raises KeyError if there is none."""
    return words if _SAME.fullmatch(words) else CHINESE[words]
