"""The chat page in a real browser: against the real gateway, and against a played one where it has to misbehave."""

import json
import re
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Protocol

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Locator, Page, WebSocketRoute, async_playwright, expect

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]

ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
ANSWER_MS = 120_000  # an answer of the embedded model beside others' work: threads that share a core crawl
SOCKET = re.compile(r"/v1/responses$")
LONG = "Write a very long story about a samovar, with many chapters and every detail."
QWEN = ["qwen2.5-0.5b-instruct-q4_k_m.gguf", "Qwen/Qwen2.5-0.5B-Instruct-GGUF", "make serve MODEL=path/to/the.gguf"]
PHONE = {"width": 390, "height": 844}

OpenPage = Callable[..., Awaitable[Page]]
Play = Callable[[WebSocketRoute], None]


class Server(Protocol):
    """The gateway under test, as the fixture gives it."""

    url: str


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    """One Chromium for all tests of this file."""
    async with async_playwright() as playwright:
        chromium = await playwright.chromium.launch(executable_path=shutil.which("chromium"), args=ARGUMENTS)
        yield chromium
        await chromium.close()


@pytest_asyncio.fixture(loop_scope="module")
async def open_page(browser: Browser, server: Server) -> AsyncIterator[OpenPage]:
    """Opens the page in a fresh browser context; whatever a test does there, the console must stay free of errors."""
    complaints: list[str] = []
    pages: list[Page] = []

    async def opened(play: Play | None = None, locale: str = "en-US", **context: Any) -> Page:
        page = await browser.new_page(locale=locale, **context)
        pages.append(page)
        page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        if play is not None:
            await page.route_web_socket(SOCKET, play)
        response = await page.goto(server.url)
        assert response is not None
        assert "default-src 'self'" in response.headers["content-security-policy"]
        await expect(page.get_by_test_id("status")).to_have_attribute("data-state", "open")
        return page

    yield opened
    for page in pages:
        await page.close()
    assert complaints == []


def messages(page: Page, role: str) -> Locator:
    """All messages of `user` or `assistant`, oldest first."""
    return page.locator(f'[data-testid="message"][data-role="{role}"]')


async def ask(page: Page, words: str) -> Locator:
    """Sends a message as a reader does; gives its answer, which is still on its way."""
    before = await messages(page, "assistant").count()
    await page.get_by_test_id("composer").fill(words)
    await page.get_by_test_id("composer").press("Enter")
    await expect(messages(page, "assistant")).to_have_count(before + 1)
    return messages(page, "assistant").nth(before)


async def begun(page: Page) -> None:
    """Waits for the first words of an answer that is still on its way."""
    arriving = page.locator('[data-state="streaming"] .message-text').filter(has_text=re.compile(r"\S"))
    await arriving.wait_for(timeout=ANSWER_MS)


async def ended(answer: Locator, state: str = "done") -> None:
    """Waits until the answer is whole, and expects it to be so in this way."""
    await expect(answer).not_to_have_attribute("data-state", "streaming", timeout=ANSWER_MS)
    await expect(answer).to_have_attribute("data-state", state)


async def count_of(answer: Locator, name: str) -> int:
    """One of the answer's token counts: `prompt`, `cached` or `output`."""
    return int(await answer.get_by_test_id("stats").get_attribute(f"data-{name}") or 0)


class PlayedGateway:
    """Says what a test wants over the page's socket, and remembers what the page asked."""

    def __init__(self, answer: Callable[["PlayedGateway", dict[str, Any]], None]) -> None:
        self.answer = answer
        self.asked: list[dict[str, Any]] = []
        self.sockets: list[WebSocketRoute] = []

    def __call__(self, socket: WebSocketRoute) -> None:
        """Takes a connection of the page."""
        self.sockets.append(socket)
        socket.on_message(self.receive)

    def receive(self, frame: str | bytes) -> None:
        """Takes a request of the page."""
        self.asked.append(json.loads(frame))
        self.answer(self, self.asked[-1])

    def say(self, kind: str, **fields: Any) -> None:
        """Sends an event on the newest connection."""
        self.sockets[-1].send(json.dumps({"type": kind, "sequence_number": 0, **fields}))

    def say_of(self, number: int, kind: str, status: str, **fields: Any) -> None:
        """Sends an event that carries response `number`, which is in `status`."""
        self.say(kind, response={"id": f"resp_{number}", "object": "response", "status": status}, **fields)

    def begin(self, words: str) -> None:
        """Sends an answer to the newest request as far as its first words."""
        number = len(self.asked)
        self.say_of(number, "response.created", "in_progress")
        self.say_of(number, "response.in_progress", "in_progress")
        self.say("response.output_text.delta", item_id="msg", output_index=0, content_index=0, delta=words)


async def test_two_turns_stream_and_the_second_takes_the_first_from_the_cache(open_page: OpenPage) -> None:
    page = await open_page()
    await page.get_by_test_id("log").evaluate(
        "log => { window.growths = 0; new MutationObserver((all) => { window.growths += all.length })"
        ".observe(log, { subtree: true, characterData: true }) }"
    )
    first = await ask(page, "Name three warm drinks.")
    await ended(first)
    assert await page.evaluate("window.growths") > 1, "the answer came in one piece"
    second = await ask(page, "Which of them is made in a samovar?")
    await ended(second)
    await expect(messages(page, "user")).to_have_text(
        [re.compile("Name three warm drinks"), re.compile("Which of them is made in a samovar")]
    )
    turn = await count_of(first, "prompt") + await count_of(first, "output")
    assert 0 < await count_of(second, "cached") <= turn < await count_of(second, "prompt")
    await expect(second.get_by_test_id("stats")).to_contain_text("prompt tokens from cache")


@pytest.mark.parametrize("by_key", [False, True], ids=["by the button", "by Escape"])
async def test_stop_ends_an_answer_as_cancelled_and_the_next_turn_works(open_page: OpenPage, by_key: bool) -> None:
    page = await open_page()
    story = await ask(page, LONG)
    await begun(page)
    if by_key:
        await page.keyboard.press("Escape")
    else:
        await page.get_by_test_id("stop").click()
    await ended(story, "cancelled")
    await expect(page.get_by_test_id("stop")).to_be_hidden()
    await expect(page.get_by_test_id("composer")).to_be_focused()
    await ended(await ask(page, "Thank you. Say goodbye."))


async def test_a_new_conversation_starts_from_nothing_even_amid_an_answer(open_page: OpenPage) -> None:
    page = await open_page()
    await ask(page, LONG)
    await begun(page)
    await page.get_by_test_id("new").click()
    await expect(page.get_by_test_id("message")).to_have_count(0)
    answer = await ask(page, "Hi")
    await ended(answer)
    await expect(page.get_by_test_id("message")).to_have_count(2)
    assert await count_of(answer, "prompt") < 80, "the prompt carries the conversation that was left"


async def test_a_lost_connection_is_mended_and_the_conversation_goes_on(open_page: OpenPage) -> None:
    sockets: list[WebSocketRoute] = []

    def through(socket: WebSocketRoute) -> None:
        sockets.append(socket)
        socket.connect_to_server()

    page = await open_page(through)
    await ended(await ask(page, "Name a warm drink."))
    await sockets[0].close(code=1012, reason="service restart")
    await expect(page.get_by_test_id("status")).to_have_attribute("data-state", "lost")
    second = await ask(page, "And a cold one?")  # held back until the connection is there again
    await ended(second)
    assert len(sockets) == 2
    assert await count_of(second, "cached") > 0


async def test_an_answer_that_its_connection_took_along_can_be_asked_again(open_page: OpenPage) -> None:
    def play(gateway: PlayedGateway, _request: dict[str, Any]) -> None:
        gateway.begin("Once upon")

    gateway = PlayedGateway(play)
    page = await open_page(gateway)
    answer = await ask(page, "A story, please.")
    await expect(answer).to_contain_text("Once upon")
    await gateway.sockets[0].close(code=1012, reason="service restart")
    await ended(answer, "failed")
    await expect(answer.get_by_test_id("error")).to_have_attribute("data-code", "connection_lost")
    await answer.get_by_test_id("again").click()
    await expect(messages(page, "assistant")).to_have_count(1)
    await expect(messages(page, "assistant")).to_contain_text("Once upon")
    assert [request["input"] for request in gateway.asked] == ["A story, please."] * 2


@pytest.mark.parametrize(("locale", "meaning"), [("en-US", "Too many people are waiting"), ("zh-CN", "排队的人太多")])
async def test_a_refusal_is_told_in_place_with_the_servers_words(
    open_page: OpenPage, locale: str, meaning: str
) -> None:
    def play(gateway: PlayedGateway, _request: dict[str, Any]) -> None:
        error = {"type": "rate_limit_error", "code": "queue_full", "message": "64 requests wait", "param": None}
        gateway.say("error", status=429, error=error)

    page = await open_page(PlayedGateway(play), locale)
    answer = await ask(page, "Hi")
    await ended(answer, "failed")
    await expect(answer.get_by_test_id("error")).to_contain_text(meaning)
    await expect(answer.get_by_test_id("error")).to_contain_text("64 requests wait (queue_full)")
    await expect(page.get_by_test_id("send")).to_be_visible()


async def test_the_place_in_the_queue_is_shown_and_a_waiting_request_can_be_stopped(open_page: OpenPage) -> None:
    def play(gateway: PlayedGateway, request: dict[str, Any]) -> None:
        if request["type"] == "response.create":
            gateway.say_of(1, "response.created", "queued")
            gateway.say_of(1, "response.queued", "queued", queue_position=3, estimated_wait_seconds=7.2)
        else:
            gateway.say_of(1, "response.incomplete", "cancelled")

    gateway = PlayedGateway(play)
    page = await open_page(gateway)
    answer = await ask(page, "Hi")
    await expect(answer).to_contain_text("Number 3 in the queue · about 8 s")
    await page.get_by_test_id("stop").click()
    await ended(answer, "cancelled")
    assert gateway.asked[-1] == {"type": "response.cancel", "response_id": "resp_1"}


async def test_stop_before_the_server_has_named_the_answer_cancels_it_as_soon_as_it_does(open_page: OpenPage) -> None:
    def play(gateway: PlayedGateway, request: dict[str, Any]) -> None:
        if request["type"] == "response.cancel":
            gateway.say_of(1, "response.incomplete", "cancelled")

    gateway = PlayedGateway(play)
    page = await open_page(gateway)
    answer = await ask(page, "Hi")
    await page.get_by_test_id("stop").click()
    await expect(answer.get_by_test_id("wait")).to_have_text("Stopping…")
    assert len(gateway.asked) == 1
    gateway.say_of(1, "response.created", "in_progress")
    gateway.say_of(1, "response.in_progress", "in_progress")
    await ended(answer, "cancelled")
    assert gateway.asked[1:] == [{"type": "response.cancel", "response_id": "resp_1"}]


@pytest.mark.parametrize(
    ("locale", "send", "greeting"), [("en-US", "Send", "talk about"), ("zh-CN", "发送", "聊点什么")]
)
async def test_the_page_speaks_the_browsers_language(
    open_page: OpenPage, locale: str, send: str, greeting: str
) -> None:
    page = await open_page(locale=locale)
    await expect(page.locator("html")).to_have_attribute("lang", re.compile(locale[:2]))
    await expect(page.get_by_test_id("send")).to_have_attribute("aria-label", send)
    await expect(page.locator("#hello h2")).to_contain_text(greeting)


async def test_every_text_exists_in_both_languages(open_page: OpenPage) -> None:
    page = await open_page()
    keys = await page.evaluate(
        "async () => { const { catalogues } = await import('/static/i18n.js');"
        " return Object.values(catalogues).map((all) => [Object.keys(all), Object.keys(all.errors)]) }"
    )
    assert keys[0] == keys[1]


async def test_the_notice_tells_in_both_languages_how_to_get_qwen(open_page: OpenPage) -> None:
    page = await open_page()
    for language, meaning in (("en", "knows English only"), ("zh-CN", "只懂英文")):
        paragraph = page.get_by_test_id("notice").locator(f'[lang="{language}"]')
        await expect(paragraph).to_be_visible()
        await expect(paragraph).to_contain_text(meaning)
        for words in QWEN:
            await expect(paragraph).to_contain_text(words)


async def test_composing_with_an_input_method_does_not_send(open_page: OpenPage) -> None:
    page = await open_page()
    composer = page.get_by_test_id("composer")
    await composer.focus()
    devtools = await page.context.new_cdp_session(page)
    await devtools.send("Input.imeSetComposition", {"text": "nihao", "selectionStart": 5, "selectionEnd": 5})
    await page.keyboard.press("Enter")
    # Safari's Enter that ends a composition comes when it is over, and is told by its code alone.
    for told_by in ({"isComposing": True}, {"keyCode": 229}):
        await composer.dispatch_event("keydown", {"key": "Enter", **told_by})
    await expect(page.get_by_test_id("message")).to_have_count(0)


async def test_shift_and_enter_start_a_new_line(open_page: OpenPage) -> None:
    page = await open_page()
    composer = page.get_by_test_id("composer")
    await composer.press_sequentially("one")
    await composer.press("Shift+Enter")
    await composer.press_sequentially("two")
    await expect(composer).to_have_value("one\ntwo")
    await expect(page.get_by_test_id("message")).to_have_count(0)


async def test_markup_is_shown_as_text_whoever_wrote_it(open_page: OpenPage) -> None:
    markup = "<img src=x onerror=\"document.title='broken'\"><script>document.title='broken'</script>"

    def play(gateway: PlayedGateway, _request: dict[str, Any]) -> None:
        gateway.begin(markup)

    page = await open_page(PlayedGateway(play))
    answer = await ask(page, markup)
    await expect(answer.locator(".message-text")).to_have_text(markup)
    await expect(messages(page, "user").locator(".message-text")).to_have_text(markup)
    await expect(page.get_by_test_id("log").locator("img, script")).to_have_count(0)
    assert await page.title() == "Samovar"


@pytest.mark.parametrize("locale", ["en-US", "zh-CN"])
async def test_nothing_is_cut_off_on_a_phone(open_page: OpenPage, locale: str) -> None:
    def play(gateway: PlayedGateway, _request: dict[str, Any]) -> None:
        gateway.begin("a-word-without-an-end-" * 20)

    gateway = PlayedGateway(play)
    page = await open_page(gateway, locale, viewport=PHONE, is_mobile=True, has_touch=True)
    answer = await ask(page, "x" * 200)
    await expect(answer).to_contain_text("without-an-end")
    await gateway.sockets[0].close(code=1012, reason="service restart")
    await ended(answer, "failed")
    for box in ("document.documentElement", "document.getElementById('scroll')"):
        assert await page.evaluate(f"{box}.scrollWidth") == PHONE["width"]
    assert await page.evaluate("document.documentElement.scrollHeight") == PHONE["height"]
