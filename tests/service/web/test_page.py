"""The page as people meet it: in a real Chromium, by pointer and by keyboard, on small screens and in the dark."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from selenium.webdriver.common.keys import Keys

from memory_store.opening import in_process_store
from memory_store.table_spec import TableSpec
from service.jobs.states import JobState
from tests.memory_store.written_cuts import write_cut
from tests.service.jobs.running_service import TENANTS, Service, running_service
from tests.service.web.browser import Browser, chromium
from tests.service.web.planted_run import PlantedRun, plant, slots
from tests.service.web.test_door import certificate

BLANK = 3000  # more letters than the PNG of an empty canvas has
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as opened:
        yield opened


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with running_service(tmp_path / "service") as running:
        yield running


@pytest.fixture
def planted(service: Service) -> PlantedRun:
    return plant(service)


@pytest.fixture
def page(browser: Browser, service: Service) -> Iterator[Browser]:
    """The page with the token of ann; nothing may have gone wrong there in the end."""
    browser.complaints()  # those of the test before
    browser.look(1280, 900)
    browser.open(f"http://127.0.0.1:{service.page_port}/#token={TENANTS['ann']}")
    browser.find("h1")
    yield browser
    browser.driver.get("about:blank")
    assert browser.complaints() == []


def open_job(page: Browser, job: str) -> None:
    page.run("location.hash = '#/jobs/' + arguments[0]", job)
    page.find(".map canvas[data-zoom]")


def seen_map(page: Browser) -> str:
    """What is drawn there, as a PNG in text."""
    return str(page.run("return document.querySelector('.map canvas').toDataURL()"))


def test_the_token_is_taken_out_of_the_address_and_kept_for_the_tab(
    planted: PlantedRun, page: Browser
) -> None:
    page.find(".jobs a")
    assert TENANTS["ann"] not in page.driver.current_url
    assert page.run("return [document.cookie, localStorage.length]") == ["", 0]
    page.driver.refresh()
    page.find(".jobs a")
    addresses = page.run("return performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert not any(TENANTS["ann"] in address for address in addresses)


def test_from_the_list_to_a_job_and_back_by_keyboard_alone(planted: PlantedRun, page: Browser) -> None:
    page.find(".jobs a")
    page.tab_to("small")
    assert page.run("return getComputedStyle(document.activeElement).outlineStyle") != "none"
    page.press(Keys.ENTER)
    page.find(".map canvas[data-zoom]")
    assert planted.id in page.text(".figures")
    page.tab_to("Map of slot accesses")
    page.press(Keys.ARROW_RIGHT, Keys.ARROW_DOWN, "+", "+")
    page.until(lambda: float(page.find(".map canvas").get_attribute("data-zoom") or 0) > 1.5)
    told = page.text("#map-slot")
    assert told.startswith("slot (17, 17)")
    count = int(slots(32)[17, 17])
    assert f"{count:,} read" in told
    page.press("0")
    page.until(lambda: page.find(".map canvas").get_attribute("data-zoom") == "1.00")
    page.tab_to("Loss, by step. Arrow keys read values.")
    page.press(Keys.HOME)
    page.until(lambda: page.text(".curve .readout").startswith("step 1 "))
    page.press(Keys.END)
    page.until(lambda: page.text(".curve .readout").startswith("step 60 "))
    assert "Shard 1 died" in page.text(".curve .readout")
    page.run("history.back()")
    page.find(".jobs a")


def test_the_skip_link_leads_past_the_bar(planted: PlantedRun, page: Browser) -> None:
    page.find(".jobs a")
    page.run("document.activeElement.blur()")
    page.tab_to("Skip to the content")
    page.press(Keys.ENTER)
    assert page.run("return document.activeElement.id") == "content"
    page.find(".jobs a")


def test_curves_and_states_grow_while_the_job_trains(
    service: Service, planted: PlantedRun, page: Browser
) -> None:
    open_job(page, planted.id)
    page.until(lambda: "60 of 200" in page.text(".figures"))
    before = page.text(".curve .readout")
    planted.train(25)
    page.until(lambda: "85 of 200" in page.text(".figures"))
    page.until(lambda: page.text(".curve .readout") != before)
    service.database.move(planted.id, JobState.RECOVERING, "a shard has died")
    page.until(lambda: page.text(".head .state") == "recovering")
    planted.tell_restart()
    page.until(lambda: len(page.all(".history .restart")) == 2)
    assert "Shard 0" in page.text(".shards")


def test_every_curve_the_shards_load_and_what_has_happened_are_told(
    planted: PlantedRun, page: Browser
) -> None:
    with closing(in_process_store([TableSpec("memory", rows=32 * 32, dim=4)])) as store:
        write_cut(store, planted.run.cuts_path)
    open_job(page, planted.id)
    loss, dot = 4 + 3 * math.exp(-60 / 40), " \N{MIDDLE DOT} "
    told = {
        "Loss": f"{loss:.4g}",
        "Perplexity": f"training {math.exp(loss):.4g}{dot}validation 90",
        "Tokens per second": "2,564",
        "Memory in use": f"last steps 50 %{dot}validation 60 %",
        "KL to uniform use": "1.2 nats",
    }

    def curves() -> dict[str, str]:
        readouts = [" ".join(readout.text.split()) for readout in page.all(".curve .readout")]
        return dict(zip([title.text for title in page.all(".curve h3")], readouts, strict=True))

    page.until(lambda: curves() == told)
    drawn = page.run(
        "return [...document.querySelectorAll('.curve canvas')].map((at) => at.toDataURL().length)"
    )
    assert all(size > BLANK for size in drawn)
    loads = [shard.text.replace("\n", " ") for shard in page.all(".shard")]
    assert loads == [f"Shard {n} {0.5 + n} cores, 10 calls/s, 1 MiB, 127.0.0.1:{n}" for n in range(2)]
    page.until(lambda: len(page.all(".history li")) == 5)
    history = page.text(".history")
    assert "Shard 1 died after step 60." in history
    assert "Cut\nstep 0, " in history


def test_two_fingers_zoom_the_map_and_one_moves_it(planted: PlantedRun, page: Browser) -> None:
    page.look(375, 800, dark=True, still=True)
    open_job(page, planted.id)
    canvas = page.find(".map canvas")
    page.until(lambda: len(seen_map(page)) > BLANK)

    def zoom() -> float:
        return float(canvas.get_attribute("data-zoom") or 0)

    page.run("arguments[0].scrollIntoView({block: 'center'})", canvas)
    page.touch(canvas, [[(-20, 0), (20, 0)], [(-60, 0), (60, 0)]])
    page.until(lambda: 2.5 < zoom() < 3.5)
    before = seen_map(page)
    page.touch(canvas, [[(0, 0)], [(60, 40)]])
    page.until(lambda: seen_map(page) != before)
    assert 2.5 < zoom() < 3.5
    assert page.run("return document.documentElement.scrollLeft") == 0


def test_the_map_follows_the_training_and_zooms(planted: PlantedRun, page: Browser) -> None:
    open_job(page, planted.id)
    page.until(lambda: len(seen_map(page)) > BLANK)
    before = seen_map(page)
    planted.draw(slots(32, seed=1))
    page.until(lambda: seen_map(page) != before)
    page.find("button[aria-label='Zoom in']").click()
    page.until(lambda: page.find(".map canvas").get_attribute("data-zoom") == "2.00")
    canvas = page.find(".map canvas")
    page.run(
        "arguments[0].dispatchEvent(new WheelEvent('wheel', {deltaY: -300, cancelable: true, bubbles: true}))",
        canvas,
    )
    page.until(lambda: float(canvas.get_attribute("data-zoom") or 0) > 3)
    planted.draw(np.full((32, 32), 7, dtype=np.uint32))
    page.until(
        lambda: "100 % of 1,024 slots" in page.text("#map-slot") or "7 reads" in page.text("#map-slot")
    )
    assert float(canvas.get_attribute("data-zoom") or 0) > 3  # where one looks, one goes on looking
    page.find("label:has(input[value='held-out'])").click()
    page.until(lambda: "weight" in page.text(".map-panel"))


def test_a_map_of_a_million_slots_is_drawn(planted: PlantedRun, page: Browser) -> None:
    planted.draw(slots(1024))
    open_job(page, planted.id)
    page.until(lambda: "1,024 \N{MULTIPLICATION SIGN} 1,024 slots" in page.text(".map-panel"))
    page.until(lambda: len(seen_map(page)) > 20 * BLANK)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [375, 768, 1440])
def test_no_screen_has_to_be_moved_sideways_or_breaks_words(
    service: Service, planted: PlantedRun, page: Browser, width: int, dark: bool
) -> None:
    failed = plant(service, name="an-experiment-with-a-long-name", steps=1)
    service.database.move(failed.id, JobState.FAILED, "Trainer 0 has died eight times. " * 4)
    page.look(width, 800, dark=dark, still=True)
    page.until(lambda: len(page.all(".jobs a")) == 2)
    for _ in range(2):
        assert page.run("return document.documentElement.scrollWidth") <= width
        light = page.run("return getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
        assert (sum(light) < 200) == dark
        weak = page.run(CONTRAST)
        assert weak == []
        assert page.run(BROKEN) == []
        open_job(page, planted.id)


def test_a_job_is_paused_from_the_page(service: Service, planted: PlantedRun, page: Browser) -> None:
    open_job(page, planted.id)
    page.find(".asks button").click()
    page.until(lambda: page.text(".head .state") == "pausing")
    assert service.database.get(planted.id).wanted == "pause"


def test_the_list_is_filtered(service: Service, planted: PlantedRun, page: Browser) -> None:
    other = plant(service, name="other", steps=1)
    service.database.move(other.id, JobState.SUCCEEDED, "done")
    page.until(lambda: len(page.all(".jobs a")) == 2)
    page.find("label:has(input[value='ended'])").click()
    page.until(lambda: [link.text for link in page.all(".jobs a")] == ["other"])
    page.find("label:has(input[value='all'])").click()
    page.until(lambda: len(page.all(".jobs a")) == 2)
    page.find("#search").send_keys("smal")
    page.until(lambda: [link.text for link in page.all(".jobs tr:not([hidden]) a")] == ["small"])


def test_a_wrong_token_is_said_in_a_sentence(browser: Browser, service: Service) -> None:
    browser.open(f"http://127.0.0.1:{service.page_port}/#token=wrong")
    browser.until(lambda: "does not know this token" in browser.text(".problem"))
    browser.find("#token").send_keys("still-wrong", Keys.ENTER)
    browser.until(lambda: "does not know this token" in browser.text(".problem"))
    browser.find("#token").clear()
    browser.find("#token").send_keys(TENANTS["ann"], Keys.ENTER)
    browser.until(lambda: browser.text("h1") == "Jobs")
    browser.find("#leave").click()
    browser.find("#token")
    assert browser.run("return sessionStorage.length") == 0
    browser.driver.get("about:blank")


def test_a_lost_connection_is_told_and_goes_on_where_it_was(browser: Browser, tmp_path: Path) -> None:
    with running_service(tmp_path / "service") as service:
        planted, port = plant(service), service.page_port
        browser.look(1280, 900)
        browser.open(f"http://127.0.0.1:{port}/#token={TENANTS['ann']}")
        open_job(browser, planted.id)
        browser.until(lambda: "60 of 200" in browser.text(".figures"))
    browser.until(lambda: "does not answer" in browser.text("#connection"))
    planted.train(10)
    with running_service(tmp_path / "service", page_port=port):
        browser.until(lambda: "70 of 200" in browser.text(".figures"))
        browser.until(lambda: not browser.find("#connection").is_displayed())
        assert len(browser.all(".history .restart")) == 1
    browser.driver.get("about:blank")


def test_over_https(tmp_path: Path) -> None:
    pair = certificate(tmp_path)
    with (
        running_service(tmp_path / "service", "0.0.0.0", pair) as service,
        chromium("--ignore-certificate-errors") as browser,
    ):
        planted = plant(service)
        browser.open(f"https://localhost:{service.page_port}/#token={TENANTS['ann']}")
        browser.find(".jobs a")
        open_job(browser, planted.id)
        assert browser.complaints() == []


# Every text that is seen against what lies behind it: WCAG 2.2, contrast of at least 4.5 (3 for large text).
CONTRAST = """
const channel = (value) => (value /= 255) <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
const parse = (text) => text.match(/[\\d.]+/g).map(Number);
const behind = (at) => { for (; at; at = at.parentElement) {
  const found = parse(getComputedStyle(at).backgroundColor); if (found[3] !== 0) return found; } return [255, 255, 255]; };
const weak = [];
for (const at of document.querySelectorAll('body *')) {
  const own = [...at.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
  if (!own || !at.getClientRects().length || at.closest('.unseen, noscript')) continue;
  const style = getComputedStyle(at);
  const [one, two] = [light(parse(style.color)), light(behind(at))].sort((a, b) => b - a);
  const large = parseFloat(style.fontSize) >= 24 || (parseFloat(style.fontSize) >= 18.66 && style.fontWeight >= 700);
  const contrast = (one + 0.05) / (two + 0.05);
  if (contrast < (large ? 3 : 4.5)) weak.push(`${at.tagName} ${at.textContent} ${contrast}`);
}
return weak;
"""

# What is one word to the eye, and stands on more than one line.
BROKEN = """
const lines = (at) => { const range = document.createRange(); range.selectNodeContents(at);
  return new Set([...range.getClientRects()].map((box) => Math.round(box.bottom))).size; };
return [...document.querySelectorAll('.jobs th, code, .state, button')]
  .filter((at) => at.getClientRects().length && lines(at) > 1).map((at) => at.textContent);
"""
