"""A real qwen2 GGUF with random weights: loads and decodes in milliseconds, so that fast tests run real llama.cpp."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import gguf
import numpy as np

LAYERS, WIDTH, FEED_FORWARD, HEADS, KV_HEADS, CONTEXT = 2, 64, 128, 4, 2, 512
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TOKENS = 257 + len(SPECIAL)
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_alphabet() -> list[str]:
    """GPT-2's printable stand-in for each of the 256 bytes, in byte order."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


def write_tiny_model(
    path: Path,
    *,
    seed: int = 0,
    context: int = CONTEXT,
    shard_tensors: int = 0,
    bos: bool | None = None,
    pre: str = "qwen2",
    template: str = CHAT_TEMPLATE,
    controls: Sequence[str] = (),
) -> Path:
    """Write the model to `path`: the 256 bytes, one merge (llama.cpp wants some) and the ChatML specials.

    `shard_tensors` splits it into files of so many tensors; the path of the first is returned. With `bos` the token
    `<|endoftext|>` is its BOS, and the file states whether prompts begin with it. `pre` names how llama.cpp splits text
    into words before it tokenizes them. `controls` are further control tokens.
    """
    random = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, "qwen2", split_max_tensors=shard_tensors)
    writer.add_context_length(context)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(1e6)
    writer.add_layer_norm_rms_eps(1e-6)
    _add_vocabulary(writer, bos=bos, pre=pre, template=template, controls=controls)
    tokens = TOKENS + len(controls)

    def tensor(name: str, *shape: int) -> None:
        writer.add_tensor(name, (random.standard_normal(shape) * 0.2).astype(np.float32))

    def norm(name: str) -> None:
        writer.add_tensor(name, np.ones(WIDTH, dtype=np.float32))

    kv_width = WIDTH // HEADS * KV_HEADS
    tensor("token_embd.weight", tokens, WIDTH)
    tensor("output.weight", tokens, WIDTH)
    norm("output_norm.weight")
    for layer in (f"blk.{i}." for i in range(LAYERS)):
        norm(layer + "attn_norm.weight")
        norm(layer + "ffn_norm.weight")
        for part, width in (("q", WIDTH), ("k", kv_width), ("v", kv_width)):
            tensor(layer + f"attn_{part}.weight", width, WIDTH)
            tensor(layer + f"attn_{part}.bias", width)
        tensor(layer + "attn_output.weight", WIDTH, WIDTH)
        tensor(layer + "ffn_gate.weight", FEED_FORWARD, WIDTH)
        tensor(layer + "ffn_up.weight", FEED_FORWARD, WIDTH)
        tensor(layer + "ffn_down.weight", WIDTH, FEED_FORWARD)
    return _written(writer, path)


def write_tiny_mamba(path: Path, *, seed: int = 0) -> Path:
    """Write a recurrent model with the same vocabulary: it has no attention, so its file states 0 heads."""
    random = np.random.default_rng(seed)
    width, inner, kernel, state, rank = WIDTH // 2, WIDTH, 4, 8, 2
    writer = gguf.GGUFWriter(path, "mamba")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(0)
    writer.add_head_count(0)
    writer.add_block_count(LAYERS)
    writer.add_ssm_conv_kernel(kernel)
    writer.add_ssm_inner_size(inner)
    writer.add_ssm_state_size(state)
    writer.add_ssm_time_step_rank(rank)
    writer.add_layer_norm_rms_eps(1e-5)
    _add_vocabulary(writer)

    def tensor(name: str, *shape: int) -> None:
        writer.add_tensor(name, (random.standard_normal(shape) * 0.2).astype(np.float32))

    def ones(name: str, count: int) -> None:
        writer.add_tensor(name, np.ones(count, dtype=np.float32))

    tensor("token_embd.weight", TOKENS, width)
    tensor("output.weight", TOKENS, width)
    ones("output_norm.weight", width)
    for layer in (f"blk.{i}." for i in range(LAYERS)):
        ones(layer + "attn_norm.weight", width)
        tensor(layer + "ssm_in.weight", 2 * inner, width)
        tensor(layer + "ssm_conv1d.weight", inner, kernel)
        tensor(layer + "ssm_conv1d.bias", inner)
        tensor(layer + "ssm_x.weight", rank + 2 * state, inner)
        tensor(layer + "ssm_dt.weight", inner, rank)
        tensor(layer + "ssm_dt.bias", inner)
        writer.add_tensor(layer + "ssm_a", -1 - np.abs(random.standard_normal((inner, state))).astype(np.float32))
        ones(layer + "ssm_d", inner)
        tensor(layer + "ssm_out.weight", width, inner)
    return _written(writer, path)


def write_tiny_bert(path: Path, *, template: str = "") -> Path:
    """Write the metadata and the vocabulary of an embedding model, without weights."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokens = [*special, *(f"\u2581{char}" for char in "abcdefghijklmnopqrstuvwxyz"), *"abcdefghijklmnopqrstuvwxyz"]
    writer = gguf.GGUFWriter(path, "bert")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_layer_norm_eps(1e-12)
    writer.add_causal_attention(False)
    writer.add_pooling_type(gguf.PoolingType.MEAN)
    writer.add_tokenizer_model("bert")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL] * len(special) + [gguf.TokenType.NORMAL] * 52)
    writer.add_token_type_count(2)
    writer.add_unk_token_id(1)
    writer.add_bos_token_id(2)
    writer.add_sep_token_id(3)
    writer.add_pad_token_id(0)
    if template:
        writer.add_chat_template(template)
    return _written(writer, path)


def _add_vocabulary(
    writer: gguf.GGUFWriter,
    *,
    bos: bool | None = None,
    pre: str = "qwen2",
    template: str = CHAT_TEMPLATE,
    controls: Sequence[str] = (),
) -> None:
    special = [*SPECIAL, *controls]
    tokens = [*byte_alphabet(), "Ġt", *special]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.NORMAL] * 257 + [gguf.TokenType.CONTROL] * len(special))
    writer.add_token_merges(["Ġ t"])
    if bos is not None:
        writer.add_bos_token_id(tokens.index("<|endoftext|>"))
    writer.add_eos_token_id(tokens.index("<|im_end|>"))
    writer.add_add_bos_token(bool(bos))
    writer.add_chat_template(template)


def _written(writer: gguf.GGUFWriter, path: Path) -> Path:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    count = len(writer.tensors)
    return path if count == 1 else path.with_name(f"{path.stem}-00001-of-{count:05}.gguf")
