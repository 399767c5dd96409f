"""A stand-in for Qwen2.5-0.5B-Instruct with random weights: its shapes, tensor types and speed, without a download.

python -m benchmarks.standin [q4_k_m|q4_0]: writes the file once into the cache folder and prints its path.

Speed does not depend on the values of weights. The vocabulary is as large as the real one, and text and tokens map one
to one: in addition to the 256 bytes there are words, each a space and one to four letters, whose only merges go from
left to right. An answer that a client sends back as text is therefore tokenized to exactly what the model emitted, as
almost always with real text. With a vocabulary of random pieces every history would be tokenized differently, which
would put llama-server at a disadvantage.
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
import string
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import gguf
import llama_cpp
import numpy as np

from benchmarks.machine import cache_folder, cores
from engine.llama import silence

CONTEXT = 32_768
VOCABULARY, FIRST_SPECIAL = 151_936, 151_643
SPECIAL: Final = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
ROLES: Final = ("system", "user", "assistant")
CHAT_TEMPLATE: Final = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
FTYPES: Final = {"q4_k_m": 15, "q4_0": 2}
"""llama.cpp's number of each quantization."""
Q4_K_M: Final = {"Q5_0": 133, "Q8_0": 13, "Q6_K": 12, "Q4_K": 12, "F32": 121}
"""Number of tensors by type in the real file of Qwen2.5-0.5B-Instruct."""
SEED: Final = 25
SPREAD: Final = 0.02
"""Standard deviation of weights, within a factor of two of the real ones: no logit overflows or is denormal."""


@dataclass(frozen=True)
class Shape:
    """Sizes of a qwen2 model; the defaults are those of Qwen2.5-0.5B."""

    layers: int = 24
    width: int = 896
    feed_forward: int = 4864
    heads: int = 14
    kv_heads: int = 2


QWEN: Final = Shape()


def words() -> Iterator[str]:
    """Yield all words of up to four letters, short ones first, each after all of its prefixes."""
    for letters in range(1, 5):
        yield from map("".join, itertools.product(string.ascii_letters, repeat=letters))


def byte_alphabet() -> list[str]:
    """Return GPT-2's printable character for each of the 256 bytes, in byte order."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


def vocabulary() -> tuple[list[str], list[str]]:
    """Return (token texts up to the first special one, merges by rank)."""
    pieces = sorted({role[:n] for role in ROLES for n in range(2, len(role) + 1)}, key=len)
    # Pieces of role names rank last, so that inside a word they never precede the word's own merges.
    spaced = [f"Ġ{word}" for word in itertools.islice(words(), FIRST_SPECIAL - 256 - len(pieces))]
    tokens = [*byte_alphabet(), *spaced, *pieces]
    return tokens, [f"{token[:-1]} {token[-1]}" for token in [*spaced, *pieces]]


def tensors(shape: Shape) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield the name and shape of every tensor; tensors of one dimension are norms (ones) and biases."""
    width, feed_forward, kv = shape.width, shape.feed_forward, shape.width // shape.heads * shape.kv_heads
    yield "token_embd.weight", (VOCABULARY, width)
    yield "output_norm.weight", (width,)
    yield "output.weight", (VOCABULARY, width)
    for layer in (f"blk.{i}." for i in range(shape.layers)):
        yield f"{layer}attn_norm.weight", (width,)
        for part, rows in (("q", width), ("k", kv), ("v", kv)):
            yield f"{layer}attn_{part}.weight", (rows, width)
            yield f"{layer}attn_{part}.bias", (rows,)
        yield f"{layer}attn_output.weight", (width, width)
        yield f"{layer}ffn_norm.weight", (width,)
        for part in ("gate", "up"):
            yield f"{layer}ffn_{part}.weight", (feed_forward, width)
        yield f"{layer}ffn_down.weight", (width, feed_forward)


def write(path: Path, shape: Shape = QWEN) -> None:
    """Write the model with 16-bit weights, one tensor at a time: 1.3 GB on disk, a fifth of it in memory."""
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_name("Stand-in for Qwen2.5 0.5B Instruct")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_rope_freq_base(1e6)
    writer.add_layer_norm_rms_eps(1e-6)
    add_tokenizer(writer)
    for name, size in tensors(shape):
        kind = np.dtype(np.float16 if len(size) == 2 else np.float32)
        writer.add_tensor_info(name, size, kind, int(np.prod(size)) * kind.itemsize)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    random = np.random.default_rng(SEED)
    for name, size in tensors(shape):
        writer.write_tensor_data(weights(name, size, random))
    writer.close()


def add_tokenizer(writer: gguf.GGUFWriter) -> None:
    """Add the vocabulary, padded to the real one's size, and the chat template."""
    tokens, merges = vocabulary()
    padding = [f"[PAD{i}]" for i in range(FIRST_SPECIAL + len(SPECIAL), VOCABULARY)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list([*tokens, *SPECIAL, *padding])
    kinds = [(gguf.TokenType.NORMAL, tokens), (gguf.TokenType.CONTROL, SPECIAL), (gguf.TokenType.UNUSED, padding)]
    writer.add_token_types([kind for kind, texts in kinds for _ in texts])
    writer.add_token_merges(merges)
    writer.add_eos_token_id(FIRST_SPECIAL + SPECIAL.index("<|im_end|>"))
    writer.add_pad_token_id(FIRST_SPECIAL)
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)


def weights(name: str, shape: tuple[int, ...], random: np.random.Generator) -> np.ndarray:
    """Return random values for a tensor, or ones for a norm."""
    if name.endswith("norm.weight"):
        return np.ones(shape, np.float32)
    values = random.standard_normal(shape, np.float32) * np.float32(SPREAD)
    if name == "output.weight":
        # Logits of 0, while the best of 150 000 words is four standard deviations above: an answer consists of words
        # and ends at its length limit.
        values[:256] = values[FIRST_SPECIAL:] = 0
    return values.astype(np.float16) if len(shape) == 2 else values


def quantize(source: Path, target: Path, ftype: int) -> None:
    """Quantize `source` with llama.cpp. Raises RuntimeError."""
    silence()
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread = ftype, cores()
    if status := llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(params)):
        raise RuntimeError(f"llama_model_quantize returned {status}")


def tensor_types(path: Path) -> Counter[str]:
    """Return the number of tensors of each type in a file."""
    return Counter(tensor.tensor_type.name for tensor in gguf.GGUFReader(path).tensors)


def standin(kind: str = "q4_k_m") -> Path:
    """Return the stand-in's file, written at the first call: about a minute, with 1.3 GB of temporary disk space."""
    target = cache_folder() / f"qwen2.5-0.5b-standin-{kind}.gguf"
    if target.exists():
        return target
    print(f"Writing {target.name}, once: about a minute.", file=sys.stderr, flush=True)
    source, unchecked = target.with_suffix(".f16"), target.with_suffix(".part")
    try:
        write(source)
        quantize(source, unchecked, FTYPES[kind])
        if kind == "q4_k_m" and (found := tensor_types(unchecked)) != Q4_K_M:
            raise RuntimeError(f"the stand-in has {dict(found)}, and the real file {Q4_K_M}")
        unchecked.rename(target)
    finally:
        source.unlink(missing_ok=True)
        unchecked.unlink(missing_ok=True)
    return target


def main() -> None:
    """Write the file if necessary and print its path."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", nargs="?", choices=FTYPES, default="q4_k_m")
    print(standin(parser.parse_args().kind))


if __name__ == "__main__":
    main()
