"""Tests the page at / in a real browser: drop, filter, map, keyboard, phone and desktop, light and dark.

    demo_page.py URL IMAGE ID [FOLDER]

IMAGE is a file whose item in the index is ID.  Screenshots go to FOLDER.  Needs Playwright for Python and a Chromium
(CHROMIUM=/usr/bin/chromium).
"""
import base64
import os
import sys

from playwright.sync_api import sync_playwright

url, image, wanted = sys.argv[1:4]
folder = sys.argv[4] if len(sys.argv) > 4 else None

DROP = """async data => {
  const blob = await (await fetch('data:image/png;base64,' + data)).blob();
  const transfer = new DataTransfer();
  transfer.items.add(new File([blob], 'dropped.png', {type: 'image/png'}));
  document.dispatchEvent(new DragEvent('drop', {dataTransfer: transfer, bubbles: true, cancelable: true}));
}"""


def check(page, width):
    page.goto(url)
    page.wait_for_selector("#map-card:not([hidden])")
    page.evaluate(DROP, base64.b64encode(open(image, "rb").read()).decode())
    page.wait_for_selector("#hits button")
    first = page.locator("#hits button").first.get_attribute("aria-label")
    score = float(first.split("cosine ")[1].split(",")[0])
    assert score > 0.999, f"the dropped image does not find itself: {first}"
    assert page.evaluate(f"near.has({wanted!r})"), f"{wanted} is not among the neighbours"
    assert "ms" in page.inner_text("#time")
    overflow = page.evaluate("document.documentElement.scrollWidth - innerWidth")
    assert overflow <= 0, f"{overflow} pixels too wide at {width}"
    # Only items that pass a filter are shown; pressing its chip removes it.
    page.select_option("#field", "label")
    value = page.locator("#value option").nth(1).inner_text()
    page.select_option("#value", index=1)
    page.click("#add")
    page.wait_for_function("v => [...document.querySelectorAll('#hits b')].every(b => b.textContent === v)", arg=value)
    page.click("#chips button")
    page.wait_for_function("() => new Set([...document.querySelectorAll('#hits b')].map(b => b.textContent)).size > 1")
    # The map by keyboard: a point is announced, Enter searches with it.
    page.focus("#canvas")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowUp")
    spoken = page.inner_text("#spoken")
    assert spoken, "the map says nothing"
    page.keyboard.press("Enter")
    page.wait_for_function("t => document.querySelector('#preview').alt === t", arg=spoken.split(",")[0])
    # And by pointer, at a point of known position.
    x, y = page.evaluate("() => { const [x, y] = place(points[5]), b = canvas.getBoundingClientRect(); const s = b.width / canvas.width; return [x * s, y * s]; }")
    page.click("#canvas", position={"x": x, "y": y})
    page.wait_for_function("() => asked.id !== undefined && points.some(p => p.id === asked.id)")
    # Every control can be reached and has a name.
    unnamed = page.evaluate("""() => [...document.querySelectorAll('button, select, input:not([hidden]), canvas, a')].filter(e => e.checkVisibility()
      && !(e.getAttribute('aria-label') || e.textContent.trim() || e.title || e.labels?.length || e.querySelector('img[alt]:not([alt=""])'))).map(e => e.outerHTML)""")
    assert not unnamed, unnamed


with sync_playwright() as play:
    browser = play.chromium.launch(executable_path=os.environ.get("CHROMIUM", "/usr/bin/chromium"), args=["--no-sandbox"])
    for width, height in ((1280, 900), (390, 844)):
        for scheme in ("light", "dark"):
            page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
            faults = []
            page.on("pageerror", lambda e: faults.append(str(e)))
            page.on("console", lambda m: faults.append(m.text) if m.type == "error" else None)
            if "PAGE" in os.environ:  # a page that is not built in yet
                body = open(os.environ["PAGE"]).read()
                page.route(url.rstrip("/") + "/", lambda route: route.fulfill(body=body, content_type="text/html"))
            check(page, width)
            assert not faults, faults
            if folder:
                page.wait_for_load_state("networkidle")
                page.screenshot(path=f"{folder}/page-{width}-{scheme}.png", full_page=True)
            page.close()
            print(f"{width} pixels, {scheme}: right")
