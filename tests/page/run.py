"""Tests the search page, /docs and their scripts in a real browser.

    tests/page/run.py [--only WORD] [--screenshots FOLDER] [--pages FOLDER]

--pages takes the page's files from a folder instead of the server, which was built before they changed.
Needs Playwright for Python, a Chromium (CHROMIUM=/usr/bin/chromium) and the built server (MACRL_SERVE=target/release/macrl-serve).
AXE names axe-core's axe.min.js; without it, that check is left out and says so.
"""
import argparse
import base64
import importlib
import os
import pathlib
import sys

from playwright.sync_api import sync_playwright

sys.path.insert(0, str(pathlib.Path(__file__).parent))
MODULES = ["arriving", "results", "map", "labels", "errors", "docs", "accessible"]
# A machine for tests has no graphics card.
FLAGS = ["--no-sandbox", "--disable-gpu"]
POLICY = ("default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
          "base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
TYPES = {"html": "text/html", "js": "text/javascript", "css": "text/css"}

DROP = """async files => {
  const transfer = new DataTransfer();
  for (const [name, type, data] of files) transfer.items.add(new File([Uint8Array.from(atob(data), c => c.charCodeAt(0))], name, { type }));
  document.dispatchEvent(new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true }));
}"""
PASTE = """text => { const data = new DataTransfer(); data.setData("text", text);
  document.body.dispatchEvent(new ClipboardEvent("paste", { clipboardData: data, bubbles: true })); }"""


class Browser:
    """Pages of a server; a script's error fails the test."""

    def __init__(self, chromium, options):
        self.chromium, self.options = chromium, options

    def page(self, server, path="/", width=1280, height=900, scheme="light", allow=(), wait=".hit[data-id]", density=1):
        page = self.chromium.new_page(viewport={"width": width, "height": height}, color_scheme=scheme, device_scale_factor=density,
                                      reduced_motion="reduce")
        page.faults = []
        page.set_default_timeout(20000)
        page.on("pageerror", lambda e: page.faults.append(str(e)))
        page.on("console", lambda m: page.faults.append(m.text) if m.type == "error" and not any(word in m.text for word in allow) else None)
        if self.options.pages:
            self.replace(page, server)
        page.goto(server.url + path)
        if wait:
            page.wait_for_selector(wait)
        return page

    def replace(self, page, server):
        folder = pathlib.Path(self.options.pages)

        def answer(route, name):
            kind = TYPES[name.rsplit(".", 1)[1]]
            policy = {"Content-Security-Policy": POLICY} if kind == "text/html" else {}
            route.fulfill(body=(folder / name).read_bytes(), headers={"Content-Type": kind + "; charset=utf-8", **policy})

        page.route(lambda url: url.split("?")[0] == server.url + "/", lambda route: answer(route, "index.html"))
        page.route(lambda url: url.split("?")[0] == server.url + "/docs", lambda route: answer(route, "docs.html"))
        page.route(lambda url: url.startswith(server.url + "/page/"), lambda route: answer(route, route.request.url.rsplit("/", 1)[1]))

    def done(self, page, name=None):
        assert not page.faults, page.faults
        overflow = page.evaluate("document.documentElement.scrollWidth - innerWidth")
        assert overflow <= 0, f"{overflow} pixels too wide"
        if name and self.options.screenshots:
            page.wait_for_load_state("networkidle")
            page.screenshot(path=f"{self.options.screenshots}/{name}.png", full_page=True)
        page.close()


def drop(page, *files):
    """Drops files (name, type, bytes) on the page."""
    page.evaluate(DROP, [[name, kind, base64.b64encode(data).decode()] for name, kind, data in files])


def paste(page, text):
    page.evaluate(PASTE, text)


def searched(page, name):
    """Waits until the results are those of the query of this name."""
    page.wait_for_function("n => document.querySelector('#hits-title').textContent.startsWith('Similar to ' + n) && !document.querySelector('#results[aria-busy]')", arg=name)


def hits(page):
    return page.locator(".hit[data-id]").evaluate_all("all => all.map(hit => hit.dataset.id)")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", default="")
    parser.add_argument("--screenshots")
    parser.add_argument("--pages")
    options = parser.parse_args()
    with sync_playwright() as play:
        executable = os.environ.get("CHROMIUM", "/usr/bin/chromium")
        chromium = play.chromium.launch(executable_path=executable, args=FLAGS)
        failed = 0
        for module in (importlib.import_module("page_" + name) for name in MODULES):
            for name, test in list(vars(module).items()):
                if not name.startswith("test_") or options.only not in name:
                    continue
                try:
                    test(Browser(chromium, options))
                    print(f"page: {name[5:]}: passed", flush=True)
                except Exception as error:
                    failed += 1
                    place = error.__traceback__
                    while place.tb_next and "page_" not in place.tb_frame.f_code.co_filename:
                        place = place.tb_next
                    print(f"page: {name[5:]}: FAILED (line {place.tb_lineno}): {error}", flush=True)
        chromium.close()
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    sys.modules["run"] = sys.modules["__main__"]
    main()
