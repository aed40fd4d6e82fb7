"""Results: in sight, opened, narrowed, and in the address."""
from run import drop, hits, searched
from server import Server, picture, png


def test_a_dropped_picture_finds_itself_and_stays_visible_on_a_phone(browser):
    with Server(items=30) as server:
        page = browser.page(server, width=390, height=844)
        page.evaluate("scrollTo(0, document.body.scrollHeight)")
        drop(page, ("mine.png", "image/png", picture("green", 4)))
        searched(page, "mine.png")
        page.wait_for_function("() => { const y = document.querySelector('.hit[data-id]').getBoundingClientRect().top; return y > 0 && y < innerHeight }")
        assert hits(page)[0] == "green/004.png"
        preview = page.locator("#preview img").bounding_box()
        assert 0 <= preview["y"] < 844, f"the query is out of sight: {preview}"
        # A point of the map leads to the results, too.
        page.locator("#canvas").scroll_into_view_if_needed()
        page.focus("#canvas")
        page.keyboard.press("ArrowRight")
        page.keyboard.press("Enter")
        page.wait_for_function("() => { const y = document.querySelector('.hit[data-id]').getBoundingClientRect().top; return y > 0 && y < innerHeight }")
        browser.done(page)


def test_a_hit_opens_and_leads_on_and_back_works(browser):
    with Server(items=30) as server:
        page = browser.page(server)
        searched(page, "")
        before = hits(page)
        page.locator(".hit[data-id]").nth(2).click()
        page.wait_for_selector("#lightbox[open]")
        facts = page.inner_text("#lightbox-facts")
        assert before[2] in facts and "cosine" in facts and "year" in facts, facts
        page.keyboard.press("ArrowRight")
        assert before[3] in page.inner_text("#lightbox-facts")
        assert page.locator("#lightbox-picture img").bounding_box()["height"] > 250
        page.get_by_role("button", name="More like this").click()
        page.wait_for_function("id => new URLSearchParams(location.search).get('id') === id", arg=before[3])
        page.wait_for_function("id => ![...document.querySelectorAll('.hit[data-id]')].some(h => h.dataset.id === id)", arg=before[3])
        assert page.evaluate("document.activeElement.id") == "hits-title"
        after = hits(page)
        page.reload()
        page.wait_for_function("n => document.querySelectorAll('.hit[data-id]').length === n", arg=len(after))
        assert hits(page) == after, "?id= does not give the same results after a reload"
        page.go_back()
        page.wait_for_function("ids => JSON.stringify([...document.querySelectorAll('.hit[data-id]')].map(h => h.dataset.id)) === JSON.stringify(ids)", arg=before)
        browser.done(page)


def test_not_like_this_moves_the_answer_away(browser):
    with Server(items=30) as server:
        page = browser.page(server)
        drop(page, ("mine.png", "image/png", picture("red", 0)))
        searched(page, "mine.png")
        away = hits(page)[1]
        page.locator(".hit[data-id]").nth(1).click()
        page.get_by_role("button", name="Not like this").click()
        page.wait_for_function("id => ![...document.querySelectorAll('.hit[data-id]')].some(h => h.dataset.id === id)", arg=away)
        page.locator("#unlike button").click()
        page.wait_for_function("id => document.querySelectorAll('.hit[data-id]')[1].dataset.id === id", arg=away)
        browser.done(page)


def test_filters_act_at_once_and_everything_can_be_browsed(browser):
    with Server(items=60) as server:
        page = browser.page(server)
        searched(page, "")
        page.get_by_label("label", exact=True).select_option("green")
        page.wait_for_function("() => { const all = [...document.querySelectorAll('.hit b')]; return all.length && all.every(b => b.textContent === 'green') }")
        page.get_by_label("year from").fill("2030")
        page.wait_for_function("() => document.querySelectorAll('.hit[data-id]').length < 10")
        page.get_by_role("button", name="Clear filters").click()
        page.wait_for_function("() => document.querySelectorAll('.hit[data-id]').length > 20")
        page.get_by_role("link", name="All items").click()
        page.wait_for_function("() => document.querySelector('#hits-title').textContent.startsWith('All items')")
        assert page.url.endswith("?browse") and hits(page) == sorted(hits(page))
        shown = len(hits(page))
        page.get_by_role("button", name="Show more").click()
        page.wait_for_function("n => document.querySelectorAll('.hit[data-id]').length > n", arg=shown)
        browser.done(page)


def test_rows_are_full_and_thumbnails_sharp(browser):
    with Server(items=60) as server:
        server.put("large", png(640, 480, lambda x, y: (x % 256, y % 256, 90)), label="red")
        for width in (1280, 900, 390):
            page = browser.page(server, "/?id=large", width=width, density=2)
            searched(page, "red")
            tops = page.locator(".hit[data-id]").evaluate_all("all => all.map(h => Math.round(h.getBoundingClientRect().top))")
            assert tops.count(tops[-1]) == tops.count(tops[0]), f"the last row is not full at {width}"
            natural, shown = page.locator("#preview img").evaluate("async i => { await i.decode(); return [i.naturalWidth, i.clientWidth] }")
            assert natural == 256
            edge = page.locator(".hit .picture").first.evaluate("e => e.clientWidth")
            assert edge * 2 <= 300, f"{edge} CSS pixels need more than a thumbnail has"
            browser.done(page)
