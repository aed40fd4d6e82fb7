"""What one sees on arrival."""
from run import hits, searched
from server import Server, picture


def test_an_example_is_answered_on_arrival(browser):
    with Server(items=30) as server:
        for width, height in ((1280, 900), (390, 844)):
            for scheme in ("light", "dark"):
                page = browser.page(server, width=width, height=height, scheme=scheme)
                searched(page, "")
                assert "an example" in page.inner_text("#hits-title")
                assert len(hits(page)) >= 20
                first = page.locator(".hit[data-id]").first.bounding_box()
                assert first["y"] + first["height"] < height, f"the first result is below the fold at {width}"
                assert 8 <= page.locator("button.sample").count() <= 10
                page.wait_for_function("() => [...document.querySelectorAll('.sample img')].every(i => i.complete && i.naturalWidth)")
                assert page.url == server.url + "/"
                browser.done(page, f"arriving-{width}-{scheme}")


def test_an_empty_index_says_the_command_and_notices_items(browser):
    with Server() as server:
        page = browser.page(server, wait="#empty pre")
        assert page.inner_text("#empty pre") == f"macrl-serve ingest --url {server.url} ~/photos"
        assert not page.locator(".waiting").evaluate_all("all => all.filter(e => e.checkVisibility()).length")
        for number in range(4):
            server.put(f"r{number}", picture("red", number), label="red")
        page.wait_for_selector(".hit[data-id]")
        assert page.locator("#empty").is_hidden()
        browser.done(page)


def test_pictures_that_are_loading_show_it(browser):
    with Server(items=6) as server:
        page = browser.page(server, "/", wait=None)
        page.close()
        page = browser.chromium.new_page()
        page.route("**/image", lambda route: None)
        if browser.options.pages:
            browser.replace(page, server)
        page.goto(server.url)
        page.wait_for_selector(".hit[data-id] .picture.loading")
        colour = page.locator(".hit .picture").first.evaluate("e => getComputedStyle(e).backgroundImage")
        assert "gradient" in colour, colour
        page.close()
