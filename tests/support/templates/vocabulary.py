"""A vocabulary of bytes with the control tokens of all templates, in a model file without weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import gguf

from tests.support.tiny_model import byte_alphabet


def write_vocabulary(path: Path, *, controls: Sequence[str], texts: Sequence[str] = ()) -> Path:
    """Write a vocabulary; `texts` are tokens that stand for themselves, which any text may contain."""
    tokens = [*byte_alphabet(), "Ġt", *controls, *texts]
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_context_length(512)
    writer.add_embedding_length(64)
    writer.add_block_count(1)
    writer.add_feed_forward_length(64)
    writer.add_head_count(1)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    kinds = [gguf.TokenType.CONTROL] * len(controls) + [gguf.TokenType.USER_DEFINED] * len(texts)
    writer.add_token_types([gguf.TokenType.NORMAL] * 257 + kinds)
    writer.add_token_merges(["Ġ t"])
    writer.add_bos_token_id(tokens.index("<s>"))
    writer.add_eos_token_id(tokens.index("</s>"))
    writer.add_add_bos_token(False)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
