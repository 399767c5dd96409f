"""What the doctor says, in English and Chinese: subjects, findings, mends."""

from __future__ import annotations

from typing import Final

TEXTS: Final = {
    "model": ("model", "模型"),
    "languages": ("languages", "语言"),
    "context": ("context", "上下文"),
    "cpu": ("processor", "处理器"),
    "cores": ("cores", "核心"),
    "memory": ("memory", "内存"),
    "state": ("state_dir", "状态目录"),
    "key": ("cache_key", "缓存密钥"),
    "cache": ("cache", "缓存"),
    "port": ("port", "端口"),
    "tls": ("TLS", "TLS"),
    "reason": ("{reason}", "{reason}"),
    "opened": (
        "{name}, {size}, {vocabulary} tokens in the vocabulary, chat template works",
        "{name}，{size}，词表 {vocabulary} 个 token，对话模板可用",
    ),
    "unreadable": ("{reason}", "{reason}"),
    "template": ("{name}: its chat template fails: {reason}", "{name}：对话模板出错：{reason}"),
    "another_model": (
        "name one of `samovar models list`, or a chat model's GGUF file, with --model, or leave the setting out",
        "用 --model 指定 samovar models list 中的名称或对话模型的 GGUF 文件，或去掉该设置",
    ),
    "another_file": (
        "fix that, or set another model with --model",
        "请先解决该问题，或用 --model 指定另一个模型",
    ),
    "known": ("the model knows {names}", "模型懂：{names}"),
    "unknown": ("the model's file does not say which it knows", "模型文件没有说明支持哪些语言"),
    "qwen": (
        "for Chinese: samovar models pull {qwen}, then --model {qwen}",
        "需要中文时：samovar models pull {qwen}，然后用 --model {qwen}",
    ),
    "short": (
        "{asked} tokens are asked for, the model was trained for {trained}: conversations end there",
        "设置为 {asked} 个 token，而模型只训练到 {trained} 个：对话以此为限",
    ),
    "shorter": ("set --context {trained}", "设置 --context {trained}"),
    "build": ("llama.cpp was built for it: {names}", "llama.cpp 按此处理器编译：{names}"),
    "slow_build": (
        "llama.cpp was built without {names}, which this processor has: answers are slower than need be",
        "llama.cpp 编译时未启用此处理器支持的 {names}：回答会偏慢",
    ),
    "rebuild": (
        "build it on this machine: make distclean, then make serve",
        "请在本机重新编译：make distclean，然后 make serve",
    ),
    "amx_off": (
        "AMX is left unused, as llama.cpp's kernels for it were seen to crash; AVX-512 computes",
        "不使用 AMX（llama.cpp 的 AMX 内核曾出现崩溃），改由 AVX-512 计算",
    ),
    "cores_are": (
        "{cores} of {physical} physical cores ({logical} logical), {engines} engines at most",
        "使用 {cores} 个，共 {physical} 个物理核心（{logical} 个逻辑核心），最多 {engines} 个引擎",
    ),
    "too_many": (
        "{cores} are set, {physical} physical cores are available: engines will slow each other down",
        "设置了 {cores} 个，可用物理核心只有 {physical} 个：引擎会互相拖慢",
    ),
    "fewer_cores": ("set --cores {physical}", "设置 --cores {physical}"),
    "memory_fits": (
        "about {all} for {engines} engines with {cells} cells each, of {available} available",
        "{engines} 个引擎（各 {cells} 个单元）约需 {all}，可用 {available}",
    ),
    "memory_taken": (
        "about {all} for {engines} engines with {cells} cells each; the gateway that runs holds its part already",
        "{engines} 个引擎（各 {cells} 个单元）约需 {all}；正在运行的网关已占用其中一部分",
    ),
    "memory_short": (
        "about {all} for {engines} engines, but {available} are available: enough for one, not for all",
        "{engines} 个引擎约需 {all}，可用仅 {available}：够一个引擎，不够全部",
    ),
    "memory_small": (
        "about {one} for a single engine, but {available} are available",
        "单个引擎约需 {one}，可用仅 {available}",
    ),
    "fewer_engines": (
        "close other programs, or set --engines 1 or a smaller --engine-memory",
        "关闭其他程序，或设置 --engines 1，或减小 --engine-memory",
    ),
    "less_memory": (
        "close other programs, or set a smaller --context, --engine-memory or model",
        "关闭其他程序，或减小 --context、--engine-memory，或换更小的模型",
    ),
    "disk_fits": ("{path} can be written, {free} free", "{path} 可写，剩余 {free}"),
    "disk_short": ("{path}: only {free} free", "{path}：仅剩 {free}"),
    "free_disk": (
        "make room (1 GiB), or name another folder with --state-dir",
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
    "unwritable": ("{path} can't be written: {reason}", "{path} 不可写：{reason}"),
    "no_database": ("{path} can't be opened: {reason}", "{path} 无法打开：{reason}"),
    "other_folder": (
        "mend it, or name another folder with --state-dir",
        "请修复，或用 --state-dir 指定其他目录",
    ),
    "key_later": ("{path} will be made at the first start", "{path} 将在首次启动时生成"),
    "key_good": ("its fingerprint is {fingerprint}", "指纹为 {fingerprint}"),
    "key_open": (
        "{path} can be read by others: so can all that is stored",
        "{path} 可被他人读取：所存内容也就不再保密",
    ),
    "close_key": ("chmod 600 {path}", "chmod 600 {path}"),
    "mend_key": (
        "put the right key there, or name it with --cache-key; after a rotation keep the old one below the new one",
        "请放回正确的密钥，或用 --cache-key 指定；轮换后把旧密钥保留在新密钥下方",
    ),
    "cache_file": ("{path} will be made, {free} free", "将创建 {path}，剩余 {free}"),
    "cache_memory": ("in memory, {free} free in {path}", "存于内存，{path} 剩余 {free}"),
    "cache_used": ("{store} holds {size} of at most {most}", "{store} 已用 {size}，上限 {most}"),
    "cache_short": ("{most} are allowed, but {path} has {free} free", "上限为 {most}，但 {path} 仅剩 {free}"),
    "less_cache": (
        "make room, or set a smaller --cache-max-bytes, or another place with --cache",
        "请清理空间，或减小 --cache-max-bytes，或用 --cache 换一个位置",
    ),
    "cache_away": (
        "{store}: {reason}; answers come, but every conversation is computed anew",
        "{store}：{reason}；仍可回答，但每次都要重新计算整个对话",
    ),
    "mend_file": (
        "name another file with --cache; one of Samovar's own that is damaged is begun anew by itself",
        "用 --cache 指定另一个文件；若是 Samovar 自己的文件损坏，会自动重建",
    ),
    "mend_cache": (
        "start it, or correct its address, password or options in --cache",
        "请启动它，或在 --cache 中更正地址、密码或选项",
    ),
    "no_blocks": (
        "{name} is recurrent or hybrid: its state can't be kept in blocks, so every conversation is computed anew",
        "{name} 是循环或混合结构：其状态无法分块保存，每次都要重新计算整个对话",
    ),
    "model_with_blocks": (
        "if conversations are long, choose a model that is a plain transformer",
        "若对话较长，请换用普通的 Transformer 模型",
    ),
    "redis_unasked": (
        "{store} answers; its maxmemory and role can't be checked, as this user may not use INFO",
        "{store} 可用；但该用户无权执行 INFO，无法检查 maxmemory 与角色",
    ),
    "allow_info": (
        "ACL SETUSER NAME +info, or see to maxmemory and maxmemory-policy yourself",
        "执行 ACL SETUSER 用户名 +info，或自行确认 maxmemory 与 maxmemory-policy",
    ),
    "redis_replica": (
        "{store} is a replica: what is stored there is read, and nothing new is stored",
        "{store} 是从节点：只能读取，无法写入新内容",
    ),
    "mend_replica": (
        "give the address of the master, or of the Sentinels: redis+sentinel://HOST,HOST/NAME/0",
        "请在 --cache 中填写主节点地址，或 Sentinel 地址：redis+sentinel://主机,主机/名称/0",
    ),
    "other_cache": (
        "give the address of a Redis that is no Cluster in --cache",
        "请在 --cache 中填写非 Cluster 的 Redis 地址",
    ),
    "redis_good": ("{store} answers; maxmemory {size}, {policy}", "{store} 可用；maxmemory {size}，{policy}"),
    "redis_unbounded": (
        "{store} answers, but has no maxmemory: it grows until the machine has no memory left",
        "{store} 可用，但未设置 maxmemory：会一直增长，直至内存耗尽",
    ),
    "bound_redis": (
        "in redis.conf: maxmemory 2gb and maxmemory-policy volatile-ttl",
        "在 redis.conf 中设置 maxmemory 2gb 和 maxmemory-policy volatile-ttl",
    ),
    "redis_policy": (
        "{store} answers; with maxmemory-policy {policy} it drops what is still needed, or takes nothing when full",
        "{store} 可用；但 maxmemory-policy 为 {policy}：会丢弃仍需要的内容，或写满后不再接收",
    ),
    "mend_policy": (
        "in redis.conf: maxmemory-policy volatile-ttl",
        "在 redis.conf 中设置 maxmemory-policy volatile-ttl",
    ),
    "port_free": ("{host}:{port} is free", "{host}:{port} 空闲"),
    "port_ours": ("a Samovar answers at {url}", "{url} 已有 Samovar 在运行"),
    "port_taken": ("{host}:{port} is taken by another program", "{host}:{port} 已被其他程序占用"),
    "port_refused": ("{host}:{port} can't be used: {reason}", "{host}:{port} 无法使用：{reason}"),
    "other_port": ("choose another with --port", "用 --port 换一个端口"),
    "other_host": ("choose an address of this machine with --host", "用 --host 指定本机的地址"),
    "tls_good": ("{cert} and its key belong together", "{cert} 与私钥匹配"),
    "tls_bad": ("{cert} with {key} can't be used: {reason}", "{cert} 与 {key} 无法使用：{reason}"),
    "mend_tls": (
        "name a PEM certificate chain and its key without password with --tls-cert and --tls-key",
        "用 --tls-cert 和 --tls-key 指定 PEM 证书链及其无密码私钥",
    ),
}
