"""Measures how quantization changes a model's predictions: compares the next-token probabilities of two model files.

The comparison runs in a child process, `python -m engine.quality BEFORE AFTER THREADS`, because llama.cpp may abort the
process when it can't compute with the weights. The child prints one line of results per text.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from engine.child import environment, module_command
from engine.errors import ModelLoadError
from engine.llama import Context, Model

TEXTS: Final = {
    "en": """\
When the first railway reached the valley, the farmers expected little of it. Milk had always gone to market by cart,
and nobody saw why it should go faster. Within two years the same farmers sent fruit to cities that they had never seen,
and the price of land beside the station had tripled. A small library opened above the post office. It had forty books,
of which thirty were about sheep. To borrow one, a reader signed a list, paid a penny, and promised to keep it dry.
How many days does it take to walk there? About three, if the weather is good: 12 miles on the first day, 15 on each of
the others. Here is what to take along: bread, water, a warm coat, and a map, because the signs are hard to read.
""",
    "zh": """\
铁路刚修到山谷的时候，农民们并没有抱太大的希望。牛奶一直是用马车送到集市上去的，谁也不明白为什么要送得更快。可是不到两年，
同样是这些农民，已经把水果卖到了自己从未去过的城市，车站旁边的地价也涨了两倍。邮局楼上开了一间小小的图书馆，一共四十本书，
其中三十本讲的是怎么养羊。想借书的人要在名单上签字，付一分钱，并且保证还书的时候书是干的。走到那里需要几天？如果天气好，
大约三天：第一天走二十公里，后面两天每天走二十五公里。请带上面包、水、一件厚外套和一张地图，因为路标又旧又难认。
""",
}
"""The texts by language, written for this purpose, so that no model has memorized them."""
TOKENS: Final = 192
"""Maximum tokens per text."""
ROWS: Final = 32
"""Tokens per step. The logits of each token take 600 KB with a vocabulary of 152 000."""


@dataclass(frozen=True)
class Drift:
    """The differences between two model files on one text."""

    language: str
    tokens: int
    same: float
    """Share of tokens after which both files predict the same likeliest token, from 0 to 1."""
    divergence: float
    """Mean Kullback-Leibler divergence of the new probabilities from the old ones, in nats per token."""


def drift(before: Path, after: Path, *, threads: int) -> list[Drift]:
    """Compare two files of one model on each text. Takes a few seconds. Raises ModelLoadError."""
    command = module_command("engine.quality", str(before), str(after), str(threads))
    made = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, start_new_session=True,
        env=environment(),
    )  # fmt: skip
    if made.returncode != 0:
        raise ModelLoadError(f"{after.name} can't be computed with; delete it, and see `samovar doctor`")
    return [
        Drift(language, int(tokens), float(same), float(divergence))
        for language, tokens, same, divergence in map(str.split, made.stdout.splitlines())
    ]


def main(argv: list[str]) -> int:
    """Compare the files of the command line, and print one line per text."""
    with ExitStack() as stack:
        models = [Model(Path(path)) for path in argv[1:3]]
        contexts = []
        for model in models:
            stack.callback(model.close)
            contexts.append(Context(model, cells=TOKENS, sequences=1, threads=int(argv[3])))
            stack.callback(contexts[-1].close)
        for language, text in TEXTS.items():
            tokens = models[0].vocabulary.tokenize(text, special=False)[:TOKENS]
            same, divergence = [], []
            for old, new in zip(*(_logits(context, tokens) for context in contexts), strict=True):
                same.append(int(old.argmax()) == int(new.argmax()))
                p, q = _log_softmax(old), _log_softmax(new)
                divergence.append(float(np.sum(np.exp(p) * (p - q))))
            print(language, len(tokens), np.mean(same), np.mean(divergence), flush=True)
    return 0


def _logits(context: Context, tokens: list[int]) -> Iterator[NDArray[np.float32]]:
    """Yield the logits after each of `tokens`, from the beginning of a text. Each array is valid until the next one."""
    context.cut(0, 0)
    for start in range(0, len(tokens), ROWS):
        rows = tokens[start : start + ROWS]
        context.decode([(token, start + i, 0, True) for i, token in enumerate(rows)])
        yield from (context.logits(i) for i in range(len(rows)))


def _log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max()
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum())
    return result


if __name__ == "__main__":
    sys.exit(main(sys.argv))
