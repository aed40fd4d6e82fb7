"""/docs: every route has a request that can be copied and tried."""
import os
import subprocess

from server import Server, picture


def test_every_route_has_a_curl_line_and_can_be_tried(browser):
    with Server(items=6) as server:
        page = browser.page(server, "/docs", wait="details", allow=("Failed to load resource",))
        routes = page.locator("details").count()
        assert routes >= 20
        assert page.locator("details").evaluate_all("all => all.every(d => d.querySelector('.example pre').textContent.startsWith('curl '))"), "a route has no example"
        assert "`" not in page.inner_text("main"), "backticks are shown"
        for number in range(routes):
            box = page.locator("details").nth(number)
            box.locator("summary").click()
            name = box.locator("summary").inner_text()
            for example in box.locator(".example").all():
                example.get_by_role("button", name="Try it").click()
                out = example.locator("pre").nth(1)
                page.wait_for_function("e => e.textContent !== '…'", arg=out.element_handle())
                answer = out.inner_text()
                # Reloading needs a key; the example's probe has no labels yet.
                expected = "40" if "reload" in name or "/probe" in name or "probe=labels" in example.inner_text() else "20"
                assert answer.startswith(expected), f"{name}: {answer[:300]}"
            box.locator("summary").click()
        browser.done(page, "docs")


def test_the_curl_lines_work_as_they_stand(browser):
    with Server(items=6) as server:
        page = browser.page(server, "/docs", wait="details")
        lines = page.locator(".example pre:first-of-type").evaluate_all("all => all.map(e => e.textContent).filter(t => t.startsWith('curl '))")
        with open(f"{server.folder.name}/picture.jpg", "wb") as file:
            file.write(picture("red", 1))
        for line in lines:
            if "reload" in line or "/probe" in line or "probe=labels" in line:
                continue
            # The type is looked for in the content.
            run = subprocess.run(["sh", "-c", line.replace("curl ", "curl -sS --fail-with-body ", 1)], cwd=server.folder.name, capture_output=True, text=True, env={**os.environ})
            assert run.returncode == 0, f"{line}: {run.stdout[:300]} {run.stderr}"
        browser.done(page)
