"""Texts of `samovar doctor` in English and Chinese: subjects, findings, fixes."""

from __future__ import annotations

from typing import Final

TEXTS: Final = {
    "model": ("model", "模型"),
    "template": ("template", "对话模板"),
    "languages": ("languages", "语言"),
    "context": ("context", "上下文"),
    "cpu": ("CPU", "CPU"),
    "cores": ("cores", "核心"),
    "memory": ("memory", "内存"),
    "state": ("state_dir", "状态目录"),
    "key": ("cache_key", "加密密钥"),
    "cache": ("cache", "缓存"),
    "port": ("port", "端口"),
    "tls": ("TLS", "TLS"),
    "reason": ("{reason}", "{reason}"),
    "opened": (
        "{name}, {size}, vocabulary of {vocabulary} tokens, chat template works",
        "{name}，{size}，词表 {vocabulary} 个词元，对话模板可用",
    ),
    "unreadable": ("{reason}", "{reason}"),
    "template_fails": ("{name}: the chat template fails: {reason}", "{name}：对话模板出错：{reason}"),
    "another_model": (
        "set --model to a name from `samovar models list` or to the GGUF file of a chat model, or leave it out",
        "用 --model 指定 samovar models list 中的名称或对话模型的 GGUF 文件，或去掉该设置",
    ),
    "system": ("a system message has a place of its own", "支持系统消息"),
    "system_changed": (
        "there is no place for a system message: it is put into the first user message",
        "没有系统消息的位置：并入第一条用户消息",
    ),
    "system_omitted": ("a system message does not reach the model", "系统消息不会传给模型"),
    "systems": ("several and late system messages stay as they are", "多条和中途的系统消息均保持原样"),
    "systems_changed": (
        "several system messages are joined, or late ones become user messages",
        "多条系统消息会合并，或中途的系统消息改为用户消息",
    ),
    "systems_omitted": ("several or late system messages do not reach the model", "多条或中途的系统消息不会传给模型"),
    "turns": ("messages of one role may follow each other", "同一角色的消息可以连续出现"),
    "turns_changed": (
        "user and assistant must alternate: messages of one role in a row are joined",
        "用户与助手必须交替：同一角色连续的消息会合并",
    ),
    "turns_omitted": (
        "several messages of one role in a row do not reach the model",
        "同一角色连续的消息不会全部传给模型",
    ),
    "appends": (
        "a follow-up is appended to the conversation, which stays as it was generated",
        "追问接在已有对话之后，之前的内容保持生成时的原样",
    ),
    "appends_not": (
        "earlier answers are shortened when a conversation is rendered again; a follow-up is appended all the same",
        "重新渲染对话时，模板会精简之前的回答；追问仍直接接在已有对话之后",
    ),
    "tools": (
        "tools are described by the template; a call is {calls}",
        "工具由模板描述；调用格式为 {calls}",
    ),
    "tools_changed": (
        "tools are described by Samovar in the system message, and calls are JSON in <tool_call>",
        "工具由 Samovar 在系统消息中描述，调用格式为 <tool_call> 中的 JSON",
    ),
    "tools_omitted": ("results of tools do not reach the model", "工具的结果不会传给模型"),
    "thinking": ("reasoning can be switched on and off", "可以开启或关闭思考"),
    "thinking_not": ("reasoning cannot be switched on or off", "不能开启或关闭思考"),
    "another_file": (
        "fix this, or choose another model with --model",
        "请先解决该问题，或用 --model 指定另一个模型",
    ),
    "known": ("the model supports {names}", "模型支持：{names}"),
    "unknown": ("the model file does not state its languages", "模型文件没有说明支持哪些语言"),
    "qwen": (
        "for Chinese: samovar models pull {qwen}, then --model {qwen}",
        "需要中文时：samovar models pull {qwen}，然后用 --model {qwen}",
    ),
    "short": (
        "set to {asked} tokens, but the model was trained for {context}: conversations are limited to {context}",
        "设置为 {asked} 个词元，而模型只训练到 {context} 个：对话以此为限",
    ),
    "shorter": ("set --context {context}", "设置 --context {context}"),
    "context_context": ("{context} tokens, as set", "{context} 个词元（按设置）"),
    "context_trained": (
        "{context} tokens, the most that the model was trained for",
        "{context} 个词元，即模型训练时的最大长度",
    ),
    "context_default": (
        "{context} tokens, the highest default; the model was trained for more, which --context can set",
        "{context} 个词元，即默认的最大值；模型支持更长，可用 --context 设置",
    ),
    "context_memory": (
        "{context} tokens: `memory`, which is {memory} for all engines together, allows no more",
        "{context} 个词元：所有引擎合计的 memory 为 {memory}，无法更长",
    ),
    "context_engine_memory": (
        "{context} tokens: `engine_memory` allows no more",
        "{context} 个词元：受 engine_memory 限制",
    ),
    "context_least": (
        "{context} tokens, the lowest default: even that exceeds the memory that is set",
        "{context} 个词元，即默认的最小值：已超出所设的内存",
    ),
    "more_memory": (
        "set a larger --memory, or fewer --engines",
        "增大 --memory，或减少 --engines",
    ),
    "more_engine_memory": ("set a larger --engine-memory", "增大 --engine-memory"),
    "build": ("llama.cpp was built for this CPU: {names}", "llama.cpp 已按此 CPU 编译：{names}"),
    "slow_build": (
        "llama.cpp was built without {names}, which this CPU supports: answers are slower than necessary",
        "llama.cpp 编译时未启用此 CPU 支持的 {names}：回答会偏慢",
    ),
    "rebuild": (
        "rebuild it on this machine: make distclean, then make serve",
        "请在本机重新编译：make distclean，然后 make serve",
    ),
    "amx_off": (
        "AMX is not used, because llama.cpp's AMX kernels were seen to crash; AVX-512 is used instead",
        "不使用 AMX（llama.cpp 的 AMX 内核曾出现崩溃），改由 AVX-512 计算",
    ),
    "cores_are": (
        "{cores} of {physical} physical cores ({logical} logical), at most {engines} engines",
        "使用 {cores} 个，共 {physical} 个物理核心（{logical} 个逻辑核心），最多 {engines} 个引擎",
    ),
    "too_many": (
        "set to {cores}, but only {physical} physical cores are available: engines will slow each other down",
        "设置了 {cores} 个，可用物理核心只有 {physical} 个：引擎会互相拖慢",
    ),
    "fewer_cores": ("set --cores {physical}", "设置 --cores {physical}"),
    "memory_fits": (
        "{engines} engines with {cells} KV cells each need about {all} of {available} available",
        "{engines} 个引擎（各 {cells} 个 KV 单元）约需 {all}，可用 {available}",
    ),
    "memory_taken": (
        "{engines} engines with {cells} KV cells each need about {all}; the running gateway already uses part of it",
        "{engines} 个引擎（各 {cells} 个 KV 单元）约需 {all}；正在运行的网关已占用其中一部分",
    ),
    "memory_short": (
        "{engines} engines need about {all}, but only {available} is available: enough for one, not for all",
        "{engines} 个引擎约需 {all}，可用仅 {available}：够一个引擎，不够全部",
    ),
    "memory_small": (
        "a single engine needs about {one}, but only {available} is available",
        "单个引擎约需 {one}，可用仅 {available}",
    ),
    "fewer_engines": (
        "close other programs, or set --engines 1 or a smaller --memory",
        "关闭其他程序，或设置 --engines 1，或减小 --memory",
    ),
    "less_memory": (
        "close other programs, or set a smaller --context, --memory or model",
        "关闭其他程序，或减小 --context、--memory，或换更小的模型",
    ),
    "disk_fits": ("{path} is writable, {free} free", "{path} 可写，剩余 {free}"),
    "disk_short": ("{path}: only {free} free", "{path}：仅剩 {free}"),
    "free_disk": (
        "free some space (1 GiB), or choose another folder with --state-dir",
        "请清理磁盘（留出 1 GiB），或用 --state-dir 指定其他目录",
    ),
    "no_locks": (
        "{path}: its file system supports no file locks, without which SQLite cannot work (NFS without a lock service)",
        "{path}：该文件系统不支持文件锁，SQLite 无法使用（例如未启用锁服务的 NFS）",
    ),
    "local_disk": (
        "name a folder on a local disk with --state-dir",
        "请用 --state-dir 指定本地磁盘上的目录",
    ),
    "unwritable": ("{path} is not writable: {reason}", "{path} 不可写：{reason}"),
    "no_database": ("{path} cannot be opened: {reason}", "{path} 无法打开：{reason}"),
    "other_folder": (
        "repair it, or choose another folder with --state-dir",
        "请修复，或用 --state-dir 指定其他目录",
    ),
    "key_later": ("{path} will be created at the first start", "{path} 将在首次启动时生成"),
    "key_good": ("fingerprint {fingerprint}", "指纹为 {fingerprint}"),
    "key_open": (
        "{path} is readable by other users: stored data is not confidential",
        "{path} 可被其他用户读取：所存内容不再保密",
    ),
    "close_key": ("chmod 600 {path}", "chmod 600 {path}"),
    "fix_key": (
        "restore the right key, or set it with --cache-key; after a rotation, keep the old key below the new one",
        "请放回正确的加密密钥，或用 --cache-key 指定；轮换后把旧密钥保留在新密钥下方",
    ),
    "cache_file": ("{path} will be created, {free} free", "将创建 {path}，剩余 {free}"),
    "cache_memory": ("in memory, {free} free in {path}", "存于内存，{path} 剩余 {free}"),
    "cache_used": ("{store} uses {size} of at most {most}", "{store} 已用 {size}，上限 {most}"),
    "cache_short": ("the limit is {most}, but {path} has only {free} free", "上限为 {most}，但 {path} 仅剩 {free}"),
    "less_cache": (
        "free some space, lower --cache-max-bytes, or choose another location with --cache",
        "请清理空间，或减小 --cache-max-bytes，或用 --cache 换一个位置",
    ),
    "cache_away": (
        "{store}: {reason}; the gateway answers, but recomputes every conversation",
        "{store}：{reason}；仍可回答，但每次都要重新计算整个对话",
    ),
    "fix_file": (
        "choose another file with --cache; Samovar recreates its own file automatically if it is damaged",
        "用 --cache 指定另一个文件；若是 Samovar 自己的文件损坏，会自动重建",
    ),
    "fix_cache": (
        "start it, or correct its address, password or options in --cache",
        "请启动它，或在 --cache 中更正地址、密码或选项",
    ),
    "no_blocks": (
        "{name} is recurrent or hybrid: its state cannot be stored in blocks, so every conversation is recomputed",
        "{name} 是循环或混合结构：其状态无法分块保存，每次都要重新计算整个对话",
    ),
    "model_with_blocks": (
        "for long conversations, choose a plain transformer model",
        "若对话较长，请换用普通的 Transformer 模型",
    ),
    "redis_unasked": (
        "{store} responds; maxmemory and role cannot be checked, because its user may not run INFO",
        "{store} 可用；但该用户无权执行 INFO，无法检查 maxmemory 与角色",
    ),
    "allow_info": (
        "run ACL SETUSER NAME +info, or check maxmemory and maxmemory-policy yourself",
        "执行 ACL SETUSER 用户名 +info，或自行确认 maxmemory 与 maxmemory-policy",
    ),
    "redis_replica": (
        "{store} is a replica: it can be read but not written",
        "{store} 是从节点：只能读取，无法写入新内容",
    ),
    "fix_replica": (
        "set --cache to the address of the master or of the Sentinels: redis+sentinel://HOST,HOST/NAME/0",
        "请在 --cache 中填写主节点地址，或 Sentinel 地址：redis+sentinel://主机,主机/名称/0",
    ),
    "other_cache": (
        "set --cache to the address of a Redis without Cluster",
        "请在 --cache 中填写非 Cluster 的 Redis 地址",
    ),
    "redis_good": ("{store} responds; maxmemory {size}, {policy}", "{store} 可用；maxmemory {size}，{policy}"),
    "redis_unbounded": (
        "{store} responds, but has no maxmemory: it grows until the machine is out of memory",
        "{store} 可用，但未设置 maxmemory：会一直增长，直至内存耗尽",
    ),
    "bound_redis": (
        "set in redis.conf: maxmemory 2gb and maxmemory-policy volatile-ttl",
        "在 redis.conf 中设置 maxmemory 2gb 和 maxmemory-policy volatile-ttl",
    ),
    "redis_policy": (
        "{store} responds; with maxmemory-policy {policy} it evicts needed data, or rejects writes when full",
        "{store} 可用；但 maxmemory-policy 为 {policy}：会丢弃仍需要的内容，或写满后不再接收",
    ),
    "fix_policy": (
        "set in redis.conf: maxmemory-policy volatile-ttl",
        "在 redis.conf 中设置 maxmemory-policy volatile-ttl",
    ),
    "port_free": ("{host}:{port} is free", "{host}:{port} 空闲"),
    "port_ours": ("Samovar already runs at {url}", "{url} 已有 Samovar 在运行"),
    "port_taken": ("{host}:{port} is used by another program", "{host}:{port} 已被其他程序占用"),
    "port_refused": ("{host}:{port} cannot be used: {reason}", "{host}:{port} 无法使用：{reason}"),
    "other_port": ("choose another with --port", "用 --port 换一个端口"),
    "other_host": ("choose an address of this machine with --host", "用 --host 指定本机的地址"),
    "tls_good": ("{cert} matches its key", "{cert} 与私钥匹配"),
    "tls_bad": ("{cert} with {key} cannot be used: {reason}", "{cert} 与 {key} 无法使用：{reason}"),
    "fix_tls": (
        "set --tls-cert to a PEM certificate chain and --tls-key to its key without password",
        "用 --tls-cert 和 --tls-key 指定 PEM 证书链及其无密码私钥",
    ),
}
