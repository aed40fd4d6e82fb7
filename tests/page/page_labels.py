"""Labelling, and the classifier that learns from it."""
import csv

from run import hits
from server import Server, picture


def labelling(browser, server, **how):
    page = browser.page(server, "/?browse", **how)
    page.click("#label-toggle")
    page.wait_for_selector("#label-form")
    return page


def give(page, ids, label):
    for id in ids:
        page.click(f".hit[data-id='{id}']")
    page.fill("#label-name", label)
    page.keyboard.press("Enter")
    page.wait_for_function("([ids, label]) => ids.every(id => document.querySelector(`.hit[data-id='${id}'] .tag:not(.guess)`)?.textContent.endsWith(label))", arg=[ids, label])


def accuracy(page):
    page.wait_for_function("() => document.querySelector('#label-state .accuracy')?.textContent.includes('%')")
    return page.inner_text("#label-state")


def labels(server):
    return {entry["id"]: entry["label"] for entry in server.call("GET", "/labels")["labels"]}


BLUE = [f"blue/{n:03}.png" for n in (2, 5, 8)]
GREEN = [f"green/{n:03}.png" for n in (1, 4, 7)]


def test_labels_teach_a_classifier_and_can_be_undone(browser):
    with Server(items=24) as server:
        for width, scheme in ((1280, "light"), (390, "dark")):
            page = labelling(browser, server, width=width, scheme=scheme)
            if width == 1280:
                give(page, BLUE, "azure")
                assert "A second label is needed" in page.inner_text("#label-state")
                give(page, GREEN, "leaf")
            assert "6 labelled in 2 classes" in accuracy(page)
            # What is not labelled is guessed, in dashes.
            page.wait_for_function("() => document.querySelector(\".hit[data-id='green/010.png'] .tag.guess\")?.textContent.endsWith('leaf')")
            browser.done(page, f"labels-{width}-{scheme}")
        page = labelling(browser, server)
        # By key: the first class is the most frequent one, here by name.
        page.focus(".hit[data-id='blue/011.png']")
        page.keyboard.press("1")
        page.wait_for_selector(".hit[data-id='blue/011.png'] .tag:not(.guess)")
        assert labels(server)["blue/011.png"] == "azure"
        page.focus("#hits-title")
        page.keyboard.press("u")
        page.wait_for_selector(".hit[data-id='blue/011.png'] .tag.guess")
        assert labels(server) == {**dict.fromkeys(BLUE, "azure"), **dict.fromkeys(GREEN, "leaf")}
        # A range, whose guesses are accepted.
        page.click(".hit[data-id='blue/011.png']")
        page.click(".hit[data-id='blue/017.png']", modifiers=["Shift"])
        page.wait_for_function("() => document.querySelector('#label-count').textContent === '3 selected'")
        page.click("#label-accept")
        page.wait_for_selector(".hit[data-id='blue/014.png'] .tag:not(.guess)")
        assert len(labels(server)) == 9
        browser.done(page)


def test_labels_survive_kill_and_two_people_label_at_once(browser):
    with Server(items=24) as server:
        one, two = labelling(browser, server), labelling(browser, server)
        give(one, BLUE, "azure")
        give(two, GREEN, "leaf")
        # Each sees what the other has done.
        one.wait_for_function("() => document.querySelector(\".hit[data-id='green/001.png'] .tag:not(.guess)\")")
        before = labels(server)
        assert len(before) == 6
        for page in (one, two):
            browser.done(page)
        server.kill()
        server.start()
        assert labels(server) == before, "labels are lost with the process"
        page = labelling(browser, server)
        assert "6 labelled in 2 classes" in accuracy(page)
        browser.done(page)


def test_the_least_certain_come_next_and_labels_are_exported(browser):
    with Server(items=24) as server:
        page = labelling(browser, server)
        give(page, BLUE, "azure")
        give(page, GREEN, "leaf")
        accuracy(page)
        page.click("#label-next")
        page.wait_for_function("() => document.querySelector('#hits-title').textContent.startsWith('Least certain')")
        shown = hits(page)
        assert len(shown) == 18 and not set(shown) & {*BLUE, *GREEN}, shown
        # The map can be coloured by what was learnt.
        page.select_option("#colour", "learnt label")
        assert page.locator("#legend .key").count() == 2
        with page.expect_download() as download:
            page.click("#export-all")
        rows = list(csv.DictReader(open(download.value.path())))
        assert len(rows) == 24 and sum(row["source"] == "given" for row in rows) == 6
        assert next(row for row in rows if row["id"] == "green/013.png")["label"] == "leaf"
        # A lasso selects what it holds.
        page.locator("#plot").scroll_into_view_if_needed()
        box = page.locator("#canvas").bounding_box()
        page.keyboard.down("Shift")
        page.mouse.move(box["x"] + 3, box["y"] + 3)
        page.mouse.down()
        for x, y in ((.995, .005), (.995, .995), (.005, .995)):
            page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"], steps=4)
        page.mouse.up()
        page.keyboard.up("Shift")
        page.wait_for_function("() => document.querySelector('#label-count').textContent === '24 selected'")
        browser.done(page)


def test_a_new_picture_is_classified_by_the_labels(browser):
    with Server(items=24) as server:
        server.call("POST", "/labels", {"labels": [{"id": id, "label": label} for ids, label in ((BLUE, "azure"), (GREEN, "leaf")) for id in ids]})
        answer = server.call("POST", "/classify?probe=labels&top_k=1", picture("green", 40), "image/png")
        assert answer["predictions"][0][0]["label"] == "leaf", answer
