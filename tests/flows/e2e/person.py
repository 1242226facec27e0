"""A person before Prefect's UI: headless Chromium, driven by what stands on the page."""

import logging
import re
from pathlib import Path

from playwright.sync_api import Dialog, Locator, Page, Response, expect

LOG = logging.getLogger(__name__)
PATIENCE_MS = 180_000
"""How long a run may take on a busy machine."""
PAGE_MS = 60_000
"""How long a page may take then."""
OPTIONAL = r"( \(Optional\))?$"


class Person:
    """Reads, fills in, presses and photographs.

    Args:
        page: an empty page.
        base_url: of Prefect's server.
        album: folder for the screenshots.
    """

    def __init__(self, page: Page, base_url: str, album: Path) -> None:
        self.page = page
        self._base_url = base_url
        self._album = album
        page.set_default_timeout(PAGE_MS)
        expect.set_options(timeout=PAGE_MS)
        page.on("dialog", Dialog.accept)
        page.on(
            "requestfailed", lambda asked: LOG.warning("No answer: %s %s (%s)", asked.method, asked.url, asked.failure)
        )
        page.on("response", _tell_refusal)

    def photograph(self, name: str, height: int = 1000) -> Path:
        """Take a picture of the page as it is, so many pixels high: what Prefect's pages scroll is within them."""
        self.page.set_viewport_size({"width": 1400, "height": height})
        self.page.wait_for_timeout(1_500)  # curves and pictures come with a delay, and nothing tells when
        path = self._album / f"{name}.png"
        self.page.screenshot(path=path)
        self.page.set_viewport_size({"width": 1400, "height": 1000})
        return path

    # ---- deployments and their form ----

    def open_deployment(self, name: str) -> None:
        self.page.goto(f"{self._base_url}/deployments")
        self.page.get_by_role("link", name=name, exact=True).first.click()

    def open_form(self, deployment: str) -> None:
        self.open_deployment(deployment)
        self.page.get_by_role("button", name="Run", exact=True).click()
        self.page.get_by_text("Custom run").click()
        expect(self.page.get_by_role("button", name="Submit")).to_be_visible()

    def titles(self) -> list[str]:
        """Titles of the form's inputs, from top to bottom, those of groups included."""
        expect(self.page.locator(".schema-form-property__label").first).to_be_visible()
        labels = self.page.locator(".schema-form-property__label").all_inner_texts()
        return [re.sub(OPTIONAL, "", text) for text in labels]

    def input(self, title: str) -> Locator:
        """The input, or the group of inputs, with that title; in a dialog when there is one."""
        of_it = ":scope > .p-label__header .schema-form-property__label"
        label = self.page.locator(of_it, has_text=re.compile(f"^{re.escape(title)}{OPTIONAL}"))
        return self.page.locator(".schema-form-property").filter(has=label).last

    def chosen(self, title: str) -> str:
        """What a dropdown shows."""
        return self.input(title).locator(".p-select-button__value").inner_text()

    def options(self, title: str) -> list[str]:
        """What a dropdown offers; it is open afterwards."""
        self.input(title).locator(".p-select-button__control").focus()
        self.page.keyboard.press("ArrowDown")
        options = self.page.locator(".p-select-option")
        expect(options.first).to_be_visible()
        return options.all_inner_texts()

    def choose(self, title: str, option: str) -> None:
        self.options(title)
        self.page.locator(".p-select-option").get_by_text(option, exact=True).click()
        expect(self.input(title).locator(".p-select-button__value")).to_have_text(option)

    def write(self, title: str, text: str) -> None:
        self.input(title).locator("textarea, input").first.fill(text)

    def submit(self) -> None:
        """Start the run of the form, and go to its page."""
        self.page.get_by_role("button", name="Submit").click()
        self.page.get_by_text("View run").last.click(timeout=PATIENCE_MS)
        self.page.wait_for_url("**/flow-run/*")

    # ---- runs ----

    def await_state(self, state: str) -> None:
        expect(self.page.locator(".state-badge").first).to_have_text(state, timeout=PATIENCE_MS)

    def press(self, button: str) -> None:
        self.page.get_by_role("button", name=button, exact=True).last.click()

    def artifacts(self, last: str) -> dict[str, str]:
        """Addresses of the run's artifacts by their keys, the newest of each, once the list has the last one."""
        self.page.set_viewport_size({"width": 1400, "height": 3000})  # what task runs have made stands below
        self.page.reload()  # the page does not look for it again
        self.page.get_by_role("tab", name="Artifacts").or_(self.page.get_by_text("Artifacts", exact=True)).last.click()
        cards = self.page.locator("a[href*='/artifacts/artifact/']")
        self.page.get_by_text(last, exact=True).first.wait_for()
        key = re.compile(r"^[a-z0-9]+(-[a-z0-9]+)+$", re.MULTILINE)
        keys = {str(card.get_attribute("href")): key.search(card.inner_text()) for card in reversed(cards.all())}
        return {match.group(): address for address, match in keys.items() if match}

    def open(self, address: str) -> str:
        """Open an address of the UI; the text of its page."""
        self.page.goto(self._base_url + address)
        expect(self.page.get_by_text("Created").first).to_be_visible()
        self.page.wait_for_timeout(500)
        return self.page.inner_text("body")


def _tell_refusal(answer: Response) -> None:
    """Log what the API refused: a test that fails tells it."""
    if answer.status >= 400 and "/api/" in answer.url:
        LOG.warning("Refused (%d): %s %s", answer.status, answer.request.method, answer.url)
