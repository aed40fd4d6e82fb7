"""Keyboard, names, announcements, contrast."""
import os

from run import drop, hits, searched
from server import Server, picture

SERIOUS = """async () => (await axe.run(document, { resultTypes: ["violations"] })).violations.map(v => v.id + ": " + v.nodes.map(n => n.target.join(" ") + " " + n.failureSummary).join(" | "))"""


def test_axe_finds_nothing(browser):
    axe = os.environ.get("AXE")
    if not axe:
        print("page: axe-core is not here (AXE=.../axe.min.js): its check is left out")
        return
    with Server(items=30) as server:
        for path in ("/", "/?browse", "/docs"):
            for width, scheme in ((1280, "light"), (1280, "dark"), (390, "light")):
                page = browser.page(server, path, width=width, scheme=scheme, wait="details" if path == "/docs" else ".hit[data-id]")
                page.wait_for_load_state("networkidle")
                # Evaluated by the browser's debugger: the page's policy does not apply.
                page.evaluate(open(axe).read())
                found = page.evaluate(SERIOUS)
                assert not found, f"{path} at {width}, {scheme}: {found}"
                if path == "/":
                    page.locator(".hit[data-id]").first.click()
                    page.wait_for_selector("#lightbox[open]")
                    found = page.evaluate(SERIOUS)
                    assert not found, f"lightbox: {found}"
                    page.keyboard.press("Escape")
                browser.done(page)


def test_everything_by_keyboard(browser):
    with Server(items=30) as server:
        page = browser.page(server)
        searched(page, "")
        sample = page.locator("button.sample").nth(3)
        name = sample.get_attribute("aria-label")
        assert name.startswith("Sample: "), name
        sample.focus()
        page.keyboard.press("Enter")
        searched(page, name.removeprefix("Sample: "))
        assert sample.evaluate("e => e === document.activeElement"), "Enter on a sample loses the focus"
        assert "similar pictures; the nearest is" in page.inner_text("#spoken")
        # A hit opens with Enter, Escape returns to it.
        hit = page.locator(".hit[data-id]").nth(1)
        hit.focus()
        page.keyboard.press("Enter")
        page.wait_for_selector("#lightbox[open]")
        page.keyboard.press("Escape")
        assert hit.evaluate("e => e === document.activeElement"), "the focus does not return to the hit"
        # The map is reached, and Enter keeps the focus there.
        page.focus("#canvas")
        page.keyboard.press("ArrowRight")
        page.keyboard.press("+")
        page.keyboard.press("Enter")
        page.wait_for_function("() => location.search.startsWith('?id=')")
        assert page.evaluate("document.activeElement.id") == "canvas"
        browser.done(page)
