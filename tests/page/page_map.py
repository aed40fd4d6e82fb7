"""The map: zoom, pan, lasso, legend, the query's place, and many points."""
from run import drop, hits, searched
from server import Server, picture

# The page keeps its map to itself: what it draws is read from the canvases.
DRAWN = """selector => { const c = document.querySelector(selector), copy = document.createElement("canvas");
  copy.width = c.width; copy.height = c.height; const pen = copy.getContext("2d"); pen.drawImage(c, 0, 0);
  const data = pen.getImageData(0, 0, c.width, c.height).data; let n = 0; for (let i = 3; i < data.length; i += 4) if (data[i] > 100) n++; return n; }"""
# Milliseconds of each frame's script: the least is what a machine without other work needs.
TIMED = """window.spent = []; const plain = requestAnimationFrame;
  window.requestAnimationFrame = run => plain(now => { const since = performance.now(); run(now); spent.push(performance.now() - since); });"""
FRAMES = """async () => { const c = document.querySelector("#canvas"), box = c.getBoundingClientRect(); c.focus();
  let frames = 0; const since = performance.now();
  while (performance.now() - since < 2000) {
    c.dispatchEvent(new WheelEvent("wheel", { deltaY: frames % 40 < 20 ? -40 : 40, clientX: box.left + 300, clientY: box.top + 200, bubbles: true, cancelable: true }));
    await new Promise(done => requestAnimationFrame(done)); frames++; }
  spent.sort((a, b) => a - b);
  const drawn = spent.filter(ms => ms > .3);
  return [frames / 2, drawn[0], drawn[drawn.length >> 1]]; }"""


def ready(page):
    page.wait_for_function("() => document.querySelector('#points').width > 100")
    page.locator("#plot").scroll_into_view_if_needed()
    page.wait_for_timeout(100)


def test_a_press_searches_and_the_query_has_a_place(browser):
    with Server() as server:
        # More points than are drawn with pictures.
        server.vectors(300)
        page = browser.page(server)
        searched(page, "")
        drop(page, ("mine.png", "image/png", picture("blue", 2)))
        searched(page, "mine.png")
        ready(page)
        rings = page.evaluate(DRAWN, "#canvas")
        assert rings > 100, "neither the query nor its neighbours are marked"
        page.get_by_role("link", name="All items").click()
        page.wait_for_function("() => document.querySelector('#hits-title').textContent.startsWith('All items')")
        ready(page)
        assert page.evaluate(DRAWN, "#canvas") == 0, "the neighbours of an earlier query are still marked"
        page.focus("#canvas")
        page.keyboard.press("ArrowLeft")
        spoken = page.inner_text("#spoken").split(", ")[1]
        page.keyboard.press("Enter")
        page.wait_for_function("id => new URLSearchParams(location.search).get('id') === id", arg=spoken)
        browser.done(page)


def test_zoom_pan_and_thumbnails(browser):
    with Server(items=30) as server:
        page = browser.page(server, "/?browse")
        ready(page)
        # So few points are near enough for pictures once these are loaded.
        page.wait_for_function("script => eval(script)('#canvas') > 20000", arg=DRAWN)
        look = lambda: page.evaluate("() => new Promise(requestAnimationFrame).then(() => document.querySelector('#canvas').toDataURL())")
        page.wait_for_load_state("networkidle")
        before = look()
        page.click("#zoom-in")
        near = look()
        assert near != before, "zooming in changes nothing"
        box = page.locator("#canvas").bounding_box()
        page.mouse.move(box["x"] + 300, box["y"] + 200)
        page.mouse.down()
        page.mouse.move(box["x"] + 420, box["y"] + 260, steps=6)
        page.mouse.up()
        page.mouse.move(5, 5)
        assert look() != near, "dragging does not move the map"
        page.click("#zoom-all")
        page.wait_for_function("before => document.querySelector('#canvas').toDataURL() === before", arg=before)
        browser.done(page, "map")


def test_a_lasso_selects_and_the_legend_shows_one_value(browser):
    with Server(items=30) as server:
        page = browser.page(server)
        searched(page, "")
        ready(page)
        page.click("#legend .key:has-text('green')")
        assert page.get_attribute("#legend .key:has-text('green')", "aria-pressed") == "true"
        page.click("#lasso")
        box = page.locator("#canvas").bounding_box()
        corner = lambda x, y: (box["x"] + x * box["width"], box["y"] + y * box["height"])
        page.mouse.move(*corner(.005, .005))
        page.mouse.down()
        for x, y in ((.995, .005), (.995, .995), (.005, .995)):
            page.mouse.move(*corner(x, y), steps=4)
        page.mouse.up()
        page.wait_for_function("() => document.querySelector('#hits-title').textContent.startsWith('In the lasso')")
        assert len(hits(page)) == 10 and all(id.startswith("green/") for id in hits(page)), hits(page)
        browser.done(page)


def test_a_hundred_thousand_points_and_two_thousand_labels(browser):
    with Server(items=6) as server:
        import json
        import random
        draw = random.Random(1)
        point = lambda i: {"id": f"i{i}", "x": round(max(-1, min(1, draw.gauss(0, .4))), 4), "y": round(max(-1, min(1, draw.gauss(0, .4))), 4),
                           "metadata": {"label": f"kind {draw.randrange(2000)}"}, "image": False}
        large = json.dumps({"points": [point(i) for i in range(100_000)], "explained": [.2, .1], "total": 250_000})
        page = browser.chromium.new_page(viewport={"width": 1280, "height": 900}, reduced_motion="reduce")
        page.add_init_script(TIMED)
        if browser.options.pages:
            browser.replace(page, server)
        page.route("**/map?*", lambda route: route.fulfill(body=large, headers={"Content-Type": "application/json"}))
        page.goto(server.url)
        page.wait_for_function("() => document.querySelector('#map-note').textContent.includes('100,000 of 250,000')")
        ready(page)
        # A picture of a plain area takes 10 kB.
        size = len(page.locator("#plot").screenshot())
        assert size > 50_000, f"the points are not drawn: {size} bytes"
        assert page.locator("#legend .key").count() == 24 and "1,976 more" in page.inner_text("#legend-note")
        page.fill("#legend-search", "kind 1234")
        assert page.locator("#legend .key").count() == 1
        frames, least, middle = page.evaluate(FRAMES)
        print(f"page: 100,000 points without a graphics card: {frames:.0f} frames a second; script of a frame: least {least:.1f} ms, median {middle:.1f} ms")
        assert frames > 0
        page.close()
