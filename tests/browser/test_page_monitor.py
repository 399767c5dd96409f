"""The monitor page: live metrics, only for admins if there are API keys."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from playwright.async_api import Browser, Page, expect

from tests.support.browsing import OpenPage
from tests.support.commands import keys
from tests.support.running import Gateway, said

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]

EXPOSITION = r"""# HELP samovar_x A counter
# TYPE samovar_x counter
samovar_x_total{route="a \"b\"\\c\nd",status="ok"} 3.0
samovar_x_total{route="e",status="no"} 4
samovar_y 1e+06
samovar_z_bucket{le="0.1"} 0
samovar_z_bucket{le="0.5"} 8
samovar_z_bucket{le="+Inf"} 10
nonsense
"""
READ = """async ([one, other]) => {
    const { Reading, increase, quantile, rate } = await import('/static/exposition.js');
    const [before, after] = [new Reading(one, 0), new Reading(other, 2)];
    return {
        labels: after.values('samovar_x_total', 'route'),
        sum: after.sum('samovar_x_total'),
        some: after.sum('samovar_x_total', { status: 'no' }),
        none: after.sum('samovar_absent'),
        large: after.sum('samovar_y'),
        rate: rate(before, after, 'samovar_x_total'),
        restarted: increase(after, before, 'samovar_x_total'),
        half: quantile(before, after, 'samovar_z', 0.4),
        most: quantile(before, after, 'samovar_z', 0.95),
        nothing: quantile(after, after, 'samovar_z', 0.5),
    };
}"""


async def fact(page: Page, name: str) -> str:
    """Return the text of one figure."""
    return await page.locator(f'[data-fact="{name}"]').inner_text()


async def test_the_text_format_is_parsed_as_prometheus_parses_it(open_page: OpenPage) -> None:
    page = await open_page()
    before = EXPOSITION.replace(" 3.0", " 1").replace(" 8", " 0").replace(" 10", " 0")
    assert await page.evaluate(READ, [before, EXPOSITION]) == {
        "labels": ['a "b"\\c\nd', "e"],
        "sum": 7,
        "some": 4,
        "none": None,
        "large": 1_000_000,
        "rate": 1,
        "restarted": 5,
        "half": pytest.approx(0.3),
        "most": 0.5,
        "nothing": None,
    }


async def test_the_monitor_page_shows_the_metrics(browser: Browser, tiny_server: Gateway) -> None:
    async with tiny_server.connect() as conversation:
        answer = await conversation.ask("Hi", max_output_tokens=8)
        assert said(answer)
        for locale, title, idle in (("zh-CN", "监控", "空闲"), ("en-US", "Monitor", "idle")):
            context = await browser.new_context(locale=locale)
            page = await context.new_page()
            await page.goto(tiny_server.url + "/monitor")
            await expect(page.locator(".bar .model")).to_have_text(title)
            await expect(page.get_by_test_id("status")).to_have_attribute("data-state", "open")
            await expect(page.locator("#engines tr", has_text=idle)).to_have_count(1)
            if locale == "zh-CN":
                await context.close()
        computed = tiny_server.metric("samovar_prompt_tokens_total", source="computed")
        assert int(await fact(page, "computed")) == computed
        await expect(page.locator('[data-tile="connections"] .tile-value')).to_have_text("1")
        await conversation.ask("Hi", max_output_tokens=8)
        await conversation.ask("Hi", model="other")
        await expect(page.locator('[data-fact="model_not_found"]')).to_have_text("1")
        assert tiny_server.metric("samovar_requests_total", code="", route="responses") == 2
        tiny_server.stop()
        await expect(page.get_by_test_id("status")).to_have_attribute("data-state", "lost", timeout=10_000)
        await context.close()


@pytest.mark.parametrize(("locale", "meaning"), [("en-US", "knows English only"), ("zh-CN", "只懂英文")])
async def test_the_operator_is_told_on_the_monitor_page_which_model_knows_chinese(
    open_page: OpenPage, server: Gateway, locale: str, meaning: str
) -> None:
    page = await open_page(locale=locale, url=f"{server.url}/monitor")
    await expect(page.get_by_test_id("advice")).to_contain_text(meaning)
    await expect(page.get_by_test_id("advice")).to_contain_text("samovar models pull qwen")
    await page.goto(server.url)
    await expect(page.locator("#model")).to_be_visible()
    await expect(page.locator("body")).not_to_contain_text("samovar models")


async def test_with_keys_the_monitor_page_is_only_for_admins(
    browser: Browser, tmp_path: Path, tiny_model: Path
) -> None:
    state = tmp_path / "state"
    reader, admin = keys(state, "add", "reader"), keys(state, "add", "chief", "--admin")
    with Gateway(state, model=tiny_model, context=512) as gateway:
        assert gateway.get("/monitor").status_code == 401
        for path in ("/monitor", "/monitor/metrics", "/monitor/history", "/monitor/users"):
            assert gateway.get(path, Authorization=f"Bearer {reader}").status_code in (401, 403)
            assert gateway.get(path, Authorization=f"Bearer {admin}").status_code == 200
        context = await browser.new_context(http_credentials={"username": "chief", "password": admin})
        page = await context.new_page()
        await page.goto(gateway.url + "/monitor")
        await expect(page.get_by_test_id("status")).to_have_attribute("data-state", "open")
        body = {"input": "Hi", "max_output_tokens": 2}
        assert gateway.post("/v1/responses", body, Authorization=f"Bearer {reader}").status_code == 200
        await expect(page.get_by_test_id("by-user")).to_contain_text("reader")
        await context.close()
        assert gateway.get("/metrics").status_code == 200


async def test_the_page_begins_with_the_last_hour_and_fits_on_a_phone(browser: Browser, tiny_server: Gateway) -> None:
    ages = [float(age) for age in range(3590, 0, -10)]
    tokens = [50.0 * index for index, _ in enumerate(ages)]
    series = [
        {"name": "samovar_generation_tokens_total", "labels": {}, "values": tokens},
        {"name": "samovar_requests_waiting", "labels": {}, "values": [7.0] * len(ages)},
        {"name": "samovar_requests_running", "labels": {}, "values": [None, *[2.0] * (len(ages) - 1)]},
    ]
    context = await browser.new_context(viewport={"width": 360, "height": 740})
    page = await context.new_page()
    past = {"every": 10, "ages": ages, "series": series}
    await page.route(re.compile("/monitor/history$"), lambda route: route.fulfill(json=past))
    await page.goto(tiny_server.url + "/monitor")
    await expect(page.get_by_test_id("status")).to_have_attribute("data-state", "open")
    axes = [page.locator(f"#plot-{name} .axis-y") for name in ("tokens", "requests")]
    await expect(axes[1]).to_have_text(re.compile("^10 ?5 ?0$"))
    await expect(page.locator("#plot-tokens .axis-x")).to_have_text(re.compile("60 min ago.*now"))
    points = await page.locator("#plot-tokens polyline").get_attribute("points")
    assert len(str(points).split()) >= len(ages)
    left = await page.locator(".tile").evaluate_all("tiles => tiles.map((tile) => tile.offsetLeft)")
    assert len(set(left)) == 2
    assert await page.evaluate("document.documentElement.scrollWidth - innerWidth") == 0
    await context.close()
    real = tiny_server.get("/monitor/history").json()
    assert len(real["ages"]) >= 1
    assert {len(one["values"]) for one in real["series"]} == {len(real["ages"])}
