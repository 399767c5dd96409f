"""Sizes of a model, computed from the metadata of its file without loading the weights."""

from __future__ import annotations

from collections.abc import Callable


class Dimensions:
    """The sizes of one model."""

    def __init__(self, get: Callable[[str], str | None]) -> None:
        """`get` returns the value of a metadata key as text, or None."""
        self._get = get

    @property
    def context_key(self) -> str:
        """The metadata key of `trained_context`."""
        return f"{self._get('general.architecture')}.context_length"

    @property
    def trained_context(self) -> int:
        """Context length in tokens that the model was trained for; 0 if the file does not state it."""
        return self._number("context_length", 0)

    @property
    def bytes_a_token(self) -> int:
        """Bytes of one token's KV in f16, over all layers; 0 for a model without attention (Mamba, RWKV)."""
        heads = self._number("attention.head_count", 1)
        if heads == 0:
            return 0
        width = self._number("embedding_length", 0) // heads
        key, value = (self._number(f"attention.{part}_length", width) for part in ("key", "value"))
        return self._number("block_count", 1) * self._number("attention.head_count_kv", heads) * (key + value) * 2

    @property
    def bytes_a_sequence(self) -> int:
        """Bytes of one sequence's recurrent state in f32, over all layers; 0 for a model with attention only.

        Source: llama.cpp's llama_hparams::n_embd_r and n_embd_s.
        """
        width, inner = self._number("embedding_length", 0), self._number("ssm.inner_size", 0)
        if head := self._number("wkv.head_size", 0):
            numbers = self._number("token_shift_count", 2) * width + width * head
        else:
            state, groups = self._number("ssm.state_size", 0), self._number("ssm.group_count", 0)
            columns = max(0, self._number("ssm.conv_kernel", 0) - 1)
            numbers = columns * (inner + 2 * groups * state) + state * inner
        return self._number("block_count", 1) * numbers * 4

    def _number(self, key: str, default: int) -> int:
        value = self._get(f"{self._get('general.architecture')}.{key}") or ""
        return int(value) if value.isdecimal() else default
