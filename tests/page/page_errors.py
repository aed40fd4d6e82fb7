"""What goes wrong, and what is at the edges."""
from run import drop, hits, paste, searched
from server import Server, flat_png, picture

NETWORK = ("Failed to load resource",)


def noted(page, text):
    page.wait_for_function("t => document.querySelector('#note').textContent.includes(t)", arg=text)


def test_a_server_that_is_gone_is_tried_again(browser):
    with Server(items=12) as server:
        page = browser.page(server, allow=NETWORK)
        searched(page, "")
        before = hits(page)
        server.kill()
        drop(page, ("mine.png", "image/png", picture("green", 4)))
        noted(page, "The server does not answer. Trying again in")
        assert hits(page) == before, "what was there is gone"
        server.start()
        searched(page, "mine.png")
        assert hits(page)[0] == "green/004.png" and page.inner_text("#note") == ""
        browser.done(page)


def test_what_is_not_a_picture_gets_a_sentence(browser):
    with Server(items=12) as server:
        page = browser.page(server, allow=NETWORK)
        searched(page, "")
        heic = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200)
        drop(page, ("holiday.heic", "", heic))
        page.wait_for_selector("#note.bad")
        page.wait_for_selector("#preview .name")
        assert page.locator("#preview img").count() == 0, "a broken picture is shown"
        assert page.inner_text("#preview .name") == "holiday.heic" and len(page.inner_text("#note")) > 20
        drop(page, ("notes.txt", "text/plain", b"hello"))
        noted(page, "“notes.txt” is not a picture")
        paste(page, "https://example.org/cat.jpg")
        noted(page, "fetches no addresses")
        drop(page, ("a.png", "image/png", picture("red", 0)), ("b.png", "image/png", picture("red", 3)))
        searched(page, "a.png")
        noted(page, "1 more left out")
        assert hits(page)[0] == "red/000.png"
        browser.done(page)


def test_one_upload_serves_search_classes_and_filters(browser):
    with Server(items=12) as server:
        page = browser.page(server)
        searched(page, "")
        uploads = []
        page.on("request", lambda r: uploads.append(r.url) if r.method == "POST" and "json" not in r.headers.get("content-type", "") else None)
        drop(page, ("mine.png", "image/png", picture("green", 4)))
        searched(page, "mine.png")
        assert page.locator("#classes li").count() == 5
        page.get_by_label("label", exact=True).select_option("blue")
        page.wait_for_function("() => { const all = [...document.querySelectorAll('.hit b')]; return all.length && all.every(b => b.textContent === 'blue') }")
        assert len(uploads) == 1, uploads
        assert "chooses among 10 classes" in page.inner_text("#classes-known")
        browser.done(page)


def test_a_picture_of_81_megapixels_is_shrunk(browser):
    with Server(items=12) as server:
        page = browser.page(server)
        searched(page, "")
        drop(page, ("wall.png", "image/png", flat_png(9000, 9000, (40, 180, 60))))
        searched(page, "wall.png")
        noted(page, "81 megapixels was shrunk to 2048 × 2048")
        assert page.locator("#note.bad").count() == 0 and len(hits(page)) == 12
        browser.done(page)


def test_after_the_right_key_the_old_error_goes(browser):
    with Server(key="secret", items=12) as server:
        page = browser.page(server, allow=NETWORK, wait="#key-form:not([hidden])")
        page.fill("#key", "wrong")
        page.keyboard.press("Enter")
        page.wait_for_function("() => document.querySelector('#key-note').textContent.includes('refused')")
        page.fill("#key", "secret")
        page.keyboard.press("Enter")
        searched(page, "")
        assert page.locator("#key-form").is_hidden() and page.inner_text("#note") == ""
        page.wait_for_function("() => [...document.querySelectorAll('.hit img')].some(i => i.complete && i.naturalWidth)")
        browser.done(page)
