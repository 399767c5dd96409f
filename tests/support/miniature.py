"""A miniature of the embedded model: its vocabulary, chat template and context, but one layer without content.

A prompt has as many tokens as with the embedded model, and costs a hundredth of the time. So tests can send the whole
prompts of coding agents to a real llama.cpp.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Final

import gguf
import numpy as np

from gateway.models.catalogue import EMBEDDED, find

WIDTH: Final = 64
HELLO: Final = "Hi! How can I help you today?"
"""The model's answer to everything."""
END: Final = "<|im_end|>"
ANSWER: Final = ("Ċ", "Hi", "!", "ĠHow", "Ġcan", "ĠI", "Ġhelp", "Ġyou", "Ġtoday", "?", END)
"""The line break with which a prompt ends and the tokens of `HELLO`, each the reason for the next one."""
JSON: Final = '"}:,<{1'
"""Tokens that the model prefers where a grammar prevents `ANSWER`, the first most: it ends strings and objects soon,
and calls a tool rather than answers in JSON. After one of them it ends the answer if it can."""
CERTAIN, LIKELY, STEP = 200.0, 100.0, 10.0
"""Logits: of the next token of `ANSWER` and of `END`, and of the first of `JSON`; the others have `STEP` less each.

All other tokens have 0: the model says the same at any temperature.
"""


def write_miniature(folder: Path) -> Path:
    """Write the model into `folder`, under the embedded model's name.

    Attention and feed-forward network add nothing, so the last token alone decides about the next one.
    """
    path = folder / f"{EMBEDDED}.gguf"
    source = gguf.GGUFReader(find(EMBEDDED).path)
    writer = gguf.GGUFWriter(path, "llama")
    for name, field in source.fields.items():
        if name.startswith("tokenizer.") or name == "llama.context_length":
            sub_type = field.types[1] if field.types[0] is gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(name, field.contents(), field.types[0], sub_type)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(1)
    writer.add_feed_forward_length(WIDTH)
    writer.add_head_count(1)
    writer.add_head_count_kv(1)
    writer.add_rope_dimension_count(WIDTH)
    writer.add_rope_freq_base(1e5)
    writer.add_layer_norm_rms_eps(1e-5)
    _add_tensors(writer, source.fields["tokenizer.ggml.tokens"].contents())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_tensors(writer: gguf.GGUFWriter, tokens: list[str]) -> None:
    def index(token: str) -> int:
        return tokens.index(token)

    # The first dimension of an embedding is the same for all tokens. The others are kinds, of which each token has one:
    # another token, one of `JSON`, or a certain one of `ANSWER`.
    other, json, first = 1, 2, 3
    steps = list(enumerate(pairwise(ANSWER), first))
    kinds = np.full(len(tokens), other)
    kinds[[index(token) for token in JSON]] = json
    for kind, (token, _) in steps:
        kinds[index(token)] = kind
    length = np.sqrt(WIDTH / 2)  # the norm does not change a vector with two such numbers
    embeddings = np.zeros((len(tokens), WIDTH), dtype=np.float32)
    embeddings[:, 0] = length
    embeddings[np.arange(len(tokens)), kinds] = length

    output = np.zeros_like(embeddings)
    for rank, token in enumerate(JSON):
        output[index(token), 0] = (LIKELY - STEP * rank) / length
    for kind, (_, follower) in steps:
        output[index(follower), kind] = CERTAIN / length
    output[index(END), json] = CERTAIN / length
    writer.add_tensor("token_embd.weight", embeddings)
    writer.add_tensor("output.weight", output)
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(WIDTH, dtype=np.float32))
    for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
        writer.add_tensor(f"blk.0.{name}.weight", np.zeros((WIDTH, WIDTH), dtype=np.float32))
