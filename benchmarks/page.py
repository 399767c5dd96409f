"""The chat page in Chromium: its weight, how soon it takes input, its longest task, and how fast 200 turns open.

python -m benchmarks.page [--rounds 10]: each round loads the page from a gateway on loopback with an empty cache, at
the width of a phone and of a desktop, and then a conversation of 200 turns from the browser's storage. Needs
Chromium and the packages of `make test`.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from collections.abc import Sequence
from typing import Final

from playwright.async_api import Browser, Response, async_playwright

from benchmarks.command import option_parser, start_benchmark
from benchmarks.figures import Figure, publish
from benchmarks.loads import subject
from benchmarks.servers import samovar

WIDTHS: Final = {"phone": (360, 740), "desktop": (1280, 800)}
TURNS: Final = 200
CONVERSATION: Final = "conv_" + "0" * 32
WEIGHT_KB: Final = 400
"""Kilobytes that the first load may have."""
OPENING_SECONDS: Final = 0.5
"""Seconds in which TURNS turns should open."""
OBSERVE: Final = """
window.longest = 0;
new PerformanceObserver((list) => {
  for (const task of list.getEntries()) window.longest = Math.max(window.longest, task.duration);
}).observe({ type: "longtask", buffered: true });
"""
"""Records the longest task in milliseconds; browsers report none below 50."""
OPEN: Final = """async () => {
  const began = performance.now();
  document.querySelector('[data-testid="open"]').click();
  const last = () => [...document.querySelectorAll('[data-testid="message"]')].at(-1)?.innerText ?? "";
  while (!last().includes("Answer 199")) await new Promise(requestAnimationFrame);
  return (performance.now() - began) / 1000;
}"""


def conversation(turns: int) -> str:
    """Return a conversation as the page stores it."""
    made, parent = {}, None
    for number in range(turns):
        id_ = f"{number:024x}"
        answer = f"Answer {number} with **bold** text, a list:\n\n- one\n- two\n\n```python\nprint({number})\n```\n"
        made[id_] = {
            "id": id_,
            "parent": parent,
            "question": f"Question {number}",
            "answer": answer,
            "state": "done",
            "at": 1_700_000_000_000 + number,
        }
        parent = id_
    return json.dumps({"id": CONVERSATION, "title": "Long", "changed": 1_700_000_000_000, "turns": made, "chosen": {}})


async def load(browser: Browser, url: str, size: tuple[int, int]) -> tuple[float, float, float]:
    """Load the page once; return its kilobytes, the seconds until it takes input, and the longest task in ms."""
    context = await browser.new_context(viewport={"width": size[0], "height": size[1]})
    page = await context.new_page()
    await page.add_init_script(OBSERVE)
    responses: list[Response] = []
    page.on("response", lambda response: responses.append(response))
    began = time.perf_counter()
    await page.goto(url, wait_until="commit")
    await page.locator('[data-testid="status"][data-state="open"]').wait_for(state="attached")
    await page.get_by_test_id("composer").fill("Hello")
    seconds = time.perf_counter() - began
    await page.wait_for_load_state("networkidle")
    sizes = [len(await response.body()) for response in responses if response.ok]
    longest = float(await page.evaluate("window.longest"))
    await context.close()
    return sum(sizes) / 1e3, seconds, longest


async def open_long(browser: Browser, url: str) -> float:
    """Return the seconds from the click on a conversation of TURNS turns until its last answer is shown."""
    context = await browser.new_context(viewport={"width": 1280, "height": 800})
    page = await context.new_page()
    await page.goto(url)
    store = f"(data) => localStorage.setItem('samovar.conversation.{CONVERSATION}', data)"
    await page.evaluate(store, conversation(TURNS))
    await page.reload()
    await page.get_by_test_id("conversation").first.wait_for(state="attached")
    seconds = await page.evaluate(OPEN)
    await context.close()
    return float(seconds)


async def measure(url: str, rounds: int) -> list[Figure]:
    """Load the page `rounds` times at each width."""
    loads: dict[str, list[tuple[float, float, float]]] = {name: [] for name in WIDTHS}
    opened = []
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for _ in range(rounds):
            for name, size in WIDTHS.items():
                loads[name].append(await load(browser, url, size))
            opened.append(await open_long(browser, url))
        await browser.close()
    return [
        *(figure for name, found in loads.items() for figure in _figures(name, found)),
        Figure(benchmark="page", name=f"opening {TURNS} turns", values=opened, unit="s", goal=OPENING_SECONDS),
    ]


def _figures(name: str, loads: Sequence[tuple[float, float, float]]) -> list[Figure]:
    weights, seconds, longest = ([load[part] for load in loads] for part in range(3))
    return [
        Figure(benchmark="page", name=f"{name}: first load", values=weights, unit="kB", goal=WEIGHT_KB),
        Figure(benchmark="page", name=f"{name}: takes input", values=seconds, unit="s"),
        Figure(benchmark="page", name=f"{name}: longest task", values=longest, unit="ms"),
    ]


def main() -> None:
    """Measure and print."""
    parser = option_parser(__doc__, model="embedded")
    parser.add_argument("--rounds", type=int, default=10)
    options = start_benchmark(parser)
    with samovar(subject(options.model).path) as server:
        publish(asyncio.run(measure(f"http://127.0.0.1:{server.port}", options.rounds)))


if __name__ == "__main__":
    main()
