"""Display of model output: Markdown, copying code, harmless results."""

from __future__ import annotations

import re
from typing import Any

import pytest
from playwright.async_api import expect

from tests.support.browsing import OpenPage, PlayedGateway, ask, conversations, ended, messages, saying

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]

TEA = """# Tea

Take **hot** water:

1. boil
2. pour

| leaf | minutes |
|---|--:|
| green | 2 |

```python
print("tea" < "coffee")
```

See [more](https://example.org/tea)."""
ATTACKS = [
    "<img src=x onerror=\"document.title='broken'\">",
    "<script>document.title='broken'</script>",
    "<svg/onload=document.title='broken'>",
    "<iframe srcdoc=\"<script>parent.document.title='broken'</script>\"></iframe>",
    "[click](javascript:document.title='broken')",
    "[click](  javascript&colon;document.title='broken')",
    "[click](data:text/html,<script>parent.document.title='broken'</script>)",
    "![picture](x\"onerror=\"document.title='broken')",
    "![picture](https://example.org/who-reads-this.png)",
    "[a]: javascript:document.title='broken'\n\n[a]",
    "<a href=\"javascript:document.title='broken'\">click</a>",
    "<math><mtext><table><mglyph><style><img src=x onerror=\"document.title='broken'\"></style></mglyph></math>",
    "<style>*{display:none}</style>",
    "<form action=https://example.org><input name=key></form>",
    "```\"><img src=x onerror=document.title='broken'>\ncode\n```",
    "<div style=position:fixed;inset:0 id=composer>",
    "> " * 5_000 + "deep",
    "$\\href{javascript:document.title='broken'}{x}$ and $\\style{position:fixed}{y}$",
    "\\(\\text{<img src=x onerror=document.title='broken'>}\\)",
    "$\\def\\a{\\a\\a}\\a$",
    "<think><img src=x onerror=document.title='broken'></think>",
    "[" * 20_000,
    "*" * 20_000 + "a",
]
ALLOWED = (
    "a, blockquote, br, code, del, em, h3, h4, h5, h6, hr, li, ol, p, pre, strong, sub, sup, table, tbody, td, th, "
    "thead, tr, ul"
)
FRAME = "div.code, div.code *, div.wide, details.thoughts, details.thoughts *, [class^=math-], math, math *"


async def test_markdown_is_shown_and_headings_go_below_the_pages_own(open_page: OpenPage) -> None:
    page = await open_page(saying(TEA))
    answer = await ask(page, "How is tea made?")
    await ended(answer)
    await expect(answer.locator("h3")).to_have_text("Tea")
    await expect(answer.locator("strong")).to_have_text("hot")
    await expect(answer.locator("ol > li")).to_have_text(["boil", "pour"])
    await expect(answer.locator("td").nth(1)).to_have_attribute("align", "right")
    await expect(answer.locator("pre code")).to_have_text('print("tea" < "coffee")\n')
    await expect(answer.locator(".code-language")).to_have_text("python")
    link = answer.get_by_role("link", name="more")
    await expect(link).to_have_attribute("href", "https://example.org/tea")
    await expect(link).to_have_attribute("rel", re.compile("noopener noreferrer"))


async def test_streamed_text_looks_like_complete_text(open_page: OpenPage) -> None:
    def play(gateway: PlayedGateway, _request: object) -> None:
        gateway.begin(TEA[0])
        for letter in TEA[1:]:
            gateway.delta(letter)
        gateway.say_of(1, "response.completed", "completed")

    page = await open_page(PlayedGateway(play))
    answer = await ask(page, "How is tea made?")
    await ended(answer)
    shown = await answer.locator(".message-text").inner_html()
    await page.reload()
    assert await messages(page, "assistant").locator(".message-text").inner_html() == shown


async def test_blocks_that_are_complete_keep_their_elements_while_more_arrives(open_page: OpenPage) -> None:
    gateway = PlayedGateway(lambda gateway, _: gateway.begin("First paragraph.\n\nSecond"))
    page = await open_page(gateway)
    answer = await ask(page, "Hi")
    first = answer.locator("p", has_text="First paragraph")
    await first.evaluate("paragraph => { window.kept = paragraph }")
    gateway.delta(" one.\n\n- third")
    await expect(answer.locator("li")).to_have_text("third")
    assert await first.evaluate("paragraph => paragraph === window.kept")


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack[:40])
async def test_malicious_model_output_is_harmless(open_page: OpenPage, attack: str) -> None:
    page = await open_page(saying(attack))
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    answer = await ask(page, attack)
    await ended(answer)
    await expect(messages(page, "user").locator(".message-text")).to_have_text(attack)
    foreign = answer.locator(f".message-text :not({ALLOWED}, {FRAME})")
    await expect(foreign).to_have_count(0)
    for link in await answer.locator("a").all():
        assert re.match("https?:", await link.get_attribute("href") or "https:")
        await link.evaluate("link => link.removeAttribute('target')")
    handlers = "element => element.getAttributeNames().filter((name) => name.startsWith('on') || name === 'style')"
    for element in await answer.locator(".message-text *").all():
        if attack.startswith(("> ", "[[", "**")):
            break  # thousands of elements
        assert await element.evaluate(handlers) == []
    assert await page.title() != "broken"
    assert [url for url in requests if "example.org" in url] == []
    await expect(conversations(page)).to_have_count(1)
    assert await conversations(page).locator("img, script, svg:not(.icon)").count() == 0


async def test_formulas_are_drawn_and_prices_are_not(open_page: OpenPage) -> None:
    prose = "It is \\(a^2\\) or $b_1$, for $5 or $6.\n\n"
    words = prose + "\\[\\frac{1}{2}\\]\n\n$$\\sqrt{x}$$\n\n`\\(c\\)` and \\(\\nonsense{\\)"
    page = await open_page(saying(words))
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    answer = await ask(page, "Mathematics, please.")
    await ended(answer)
    await expect(answer.locator("math")).to_have_count(4)
    await expect(answer.locator("msup")).to_have_text("a2")
    await expect(answer.locator("div.math-block mfrac")).to_have_count(1)
    await expect(answer.locator("div.math-block msqrt")).to_have_count(1)
    await expect(answer.locator(".message-text")).to_contain_text("for $5 or $6.")
    await expect(answer.locator("code")).to_have_text([r"\(c\)", r"\nonsense{"])
    assert len([url for url in asked if url.endswith("/vendor/temml.js")]) == 1


async def test_the_library_for_formulas_is_loaded_only_with_the_first_one(open_page: OpenPage) -> None:
    page = await open_page(saying("No mathematics."))
    await ended(await ask(page, "Hi"))
    assert not await page.evaluate(
        "performance.getEntriesByType('resource').some(({ name }) => name.includes('temml'))"
    )


async def test_thoughts_are_folded_and_are_not_copied(open_page: OpenPage) -> None:
    gateway = PlayedGateway(lambda gateway, _: gateway.begin("<think>Let me **see**."))
    page = await open_page(gateway)
    await page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    answer = await ask(page, "Tea?")
    thoughts = answer.get_by_test_id("thoughts")
    await expect(thoughts.locator("summary")).to_have_text("Thoughts")
    await expect(thoughts.locator("strong")).to_be_hidden()
    gateway.delta("</think>\n\nYes.")
    gateway.say_of(1, "response.completed", "completed")
    await ended(answer)
    await expect(answer.locator(".message-text > p")).to_have_text(["Yes."])
    await thoughts.locator("summary").click()
    await expect(thoughts.locator("strong")).to_have_text("see")
    await answer.get_by_test_id("copy").click()
    await expect(answer.get_by_test_id("copy")).to_have_attribute("title", "Copied")
    assert await page.evaluate("navigator.clipboard.readText()") == "Yes."


async def test_thoughts_that_the_gateway_sends_apart_are_folded(open_page: OpenPage) -> None:
    def answers(gateway: PlayedGateway, _: dict[str, Any]) -> None:
        gateway.begin("")
        gateway.say("response.reasoning_text.delta", item_id="rs", output_index=0, content_index=0, delta="Let me ")
        gateway.say("response.reasoning_text.delta", item_id="rs", output_index=0, content_index=0, delta="**see**.")

    gateway = PlayedGateway(answers)
    page = await open_page(gateway)
    answer = await ask(page, "Tea?")
    thoughts = answer.get_by_test_id("thoughts")
    await expect(thoughts.locator("strong")).to_have_text("see")
    await expect(thoughts.locator("strong")).to_be_hidden()
    gateway.say("response.reasoning_text.done", item_id="rs", output_index=0, content_index=0, text="Let me **see**.")
    gateway.delta("Yes.")
    await expect(answer.locator(".message-text > p")).to_have_text(["Yes."])
    output = [
        {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "Let me **see**."}]},
        {"type": "message", "content": [{"type": "output_text", "text": "Yes."}]},
    ]
    response = {"id": "resp_1", "object": "response", "status": "completed", "output": output}
    gateway.say("response.completed", response=response)
    await ended(answer)
    await expect(answer.locator(".message-text > p")).to_have_text(["Yes."])
    await expect(thoughts.locator("p")).to_have_text("Let me see.")


async def test_line_breaks_and_raised_text_are_shown_and_each_paragraph_has_its_direction(open_page: OpenPage) -> None:
    page = await open_page(saying("H<sub>2</sub>O and x<sup>2</sup><br>next\n\nשלום עולם"))
    answer = await ask(page, "Hi")
    await ended(answer)
    await expect(answer.locator("sub")).to_have_text("2")
    await expect(answer.locator("sup")).to_have_text("2")
    await expect(answer.locator("br")).to_have_count(1)
    directions = "paragraphs => paragraphs.map((paragraph) => getComputedStyle(paragraph).direction)"
    assert await answer.locator("p[dir=auto]").evaluate_all(directions) == ["ltr", "rtl"]


@pytest.mark.parametrize("secure", [True, False], ids=["with a clipboard", "over plain http from another desk"])
async def test_code_and_answers_are_copied(open_page: OpenPage, secure: bool) -> None:
    page = await open_page(saying(TEA))
    if not secure:
        await page.evaluate("Object.defineProperty(navigator, 'clipboard', { value: undefined })")
    else:
        await page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    answer = await ask(page, "How is tea made?")
    await ended(answer)
    composer = page.get_by_test_id("composer")
    for button, copied in (("copy-code", 'print("tea" < "coffee")\n'), ("copy", TEA)):
        await answer.get_by_test_id(button).click()
        await expect(answer.get_by_test_id(button)).to_have_attribute("title", "Copied")
        await composer.fill("")
        await composer.press("Control+V")
        await expect(composer).to_have_value(copied)
