"""A real headless Chromium, driven through its own driver: Debian's packages chromium and chromium-driver."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver import ActionChains, Chrome, ChromeOptions, ChromeService
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

PATIENCE_S = 90.0
_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--hide-scrollbars",
)  # fmt: skip


class Browser:
    """One tab."""

    def __init__(self, driver: Chrome) -> None:
        self.driver = driver

    def complaints(self) -> list[str]:
        """Warnings and errors in the console since it was asked last."""
        lines = self.driver.get_log("browser")
        return [f"{line['level']}: {line['message']}" for line in lines if line["level"] != "INFO"]

    def open(self, address: str) -> None:
        """As typed into the address bar of a new tab."""
        self.driver.get("about:blank")
        self.driver.get(address)

    def find(self, selector: str) -> WebElement:
        """The first element that fits, when it is there."""
        return self.until(lambda: next(iter(self.driver.find_elements(By.CSS_SELECTOR, selector)), None))

    def all(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def text(self, selector: str) -> str:
        return self.find(selector).text

    def run(self, script: str, *arguments: object) -> Any:
        return self.driver.execute_script(script, *arguments)

    def press(self, *keys: str) -> None:
        """Press keys, one after the other, wherever the focus is."""
        for key in keys:
            ActionChains(self.driver).send_keys(key).perform()

    def tab_to(self, name: str) -> None:
        """Press Tab until the element whose text or label is `name` has the focus."""
        for _ in range(60):
            self.press(Keys.TAB)
            focused = self.run(
                "const at = document.activeElement; return at.getAttribute('aria-label') || at.textContent || at.id"
            )
            if focused.strip() == name:
                return
        raise AssertionError(f"{name} can't be reached with the Tab key")

    def until(self, true: Callable[[], Any]) -> Any:
        """Wait until something is true of the page; what that is."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                if found := true():
                    return found
            except StaleElementReferenceException:
                pass  # drawn anew meanwhile
            assert time.monotonic() < deadline, self.run("return document.body.innerText")
            time.sleep(0.1)

    def touch(self, at: WebElement, moments: Sequence[Sequence[tuple[int, int]]]) -> None:
        """Put fingers on an element, move them and lift them; where they are at each moment, in pixels from its middle."""
        box = self.run("return arguments[0].getBoundingClientRect().toJSON()", at)
        middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        kinds = ["touchStart", *["touchMove"] * (len(moments) - 1), "touchEnd"]
        for kind, fingers in zip(kinds, [*moments, []], strict=True):
            points = [
                {"x": middle[0] + x, "y": middle[1] + y, "id": number}
                for number, (x, y) in enumerate(fingers)
            ]
            self.driver.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    def look(self, width: int, height: int, *, dark: bool = False, still: bool = False) -> None:
        """Be a screen of this size."""
        self.driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False},
        )
        features = [
            {"name": "prefers-color-scheme", "value": "dark" if dark else "light"},
            {"name": "prefers-reduced-motion", "value": "reduce" if still else "no-preference"},
        ]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


@contextmanager
def chromium(*flags: str) -> Iterator[Browser]:
    """A browser with an empty profile of its own."""
    options = ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with tempfile.TemporaryDirectory(prefix="pkm-chromium-", ignore_cleanup_errors=True) as profile:
        for flag in (*_FLAGS, f"--user-data-dir={profile}", *flags):
            options.add_argument(flag)
        driver = Chrome(options=options, service=ChromeService("/usr/bin/chromedriver"))
        try:
            driver.set_page_load_timeout(PATIENCE_S)
            driver.set_script_timeout(PATIENCE_S)
            yield Browser(driver)
        finally:
            driver.quit()
