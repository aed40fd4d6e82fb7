#!/usr/bin/env bash
# Tests the pages in a browser: tests/page, with axe-core, and the types of their scripts with TypeScript.
# Needs a Chromium (CHROMIUM=... names one) and fetches Playwright (PyPI) and axe-core and TypeScript (npm) into
# target/page-tests.  Where something cannot be had, the tests are skipped and say so; MACRL_REQUIRE_BROWSER=1 makes that an error.
set -euo pipefail
cd "$(dirname "$0")/.."
tools=target/page-tests

skip() {
    if [ "${MACRL_REQUIRE_BROWSER:-}" = 1 ]; then echo "page tests: $1" >&2; exit 1; fi
    echo "page tests: SKIPPED: $1"
    exit 0
}

chromium=${CHROMIUM:-$(command -v chromium || command -v chromium-browser || command -v google-chrome || true)}
[ -n "$chromium" ] || skip "no Chromium was found (CHROMIUM=... names one)"
mkdir -p "$tools"
if ! "$tools/venv/bin/python" -c 'import playwright' 2>/dev/null; then
    { python3 -m venv "$tools/venv" && "$tools/venv/bin/pip" install --quiet --disable-pip-version-check playwright==1.65.2; } \
        >"$tools/pip.log" 2>&1 || skip "Playwright for Python could not be installed ($tools/pip.log)"
fi
if command -v npm >/dev/null; then
    if [ ! -e "$tools/node_modules/axe-core/axe.min.js" ] || [ ! -x "$tools/node_modules/.bin/tsc" ]; then
        npm install --silent --no-audit --no-fund --prefix "$tools" axe-core@4 typescript@7 >"$tools/npm.log" 2>&1 ||
            echo "page tests: axe-core and TypeScript could not be installed ($tools/npm.log): their checks are left out"
    fi
else
    echo "page tests: npm was not found: the checks by axe-core and TypeScript are left out"
fi
axe=$tools/node_modules/axe-core/axe.min.js
if [ -e "$tools/node_modules/.bin/tsc" ]; then
    "$tools/node_modules/.bin/tsc" --checkJs --allowJs --noEmit --strict --target es2022 --module es2022 \
        --moduleResolution bundler --lib es2023,dom,dom.iterable serve/src/pages/types.d.ts serve/src/pages/*.js
fi
if [ -e "$axe" ]; then export AXE=$axe; fi
CHROMIUM=$chromium exec "$tools/venv/bin/python" tests/page/run.py "$@"
