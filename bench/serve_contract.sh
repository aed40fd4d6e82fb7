#!/bin/sh
# Tests the server against its OpenAPI document (schemathesis) and /v1/embeddings with OpenAI's client.
#
#   PYTHON=python3 bench/serve_contract.sh BUNDLE IMAGE
#
# PYTHON needs schemathesis and openai.  Fails on any failure.
set -eu
bundle=$1 image=$2 python=${PYTHON:-python3}
url=http://127.0.0.1:8974
work=$(mktemp -d)
trap 'kill $pid 2>/dev/null || true; rm -rf "$work"' EXIT
"${MACRL_SERVE:-target/release/macrl-serve}" --bundle "$bundle" --listen "${url#http://}" > "$work/log" &
pid=$!
until curl -sf $url/ready > /dev/null; do kill -0 $pid && sleep 0.1; done
"$python" - "$url" "$image" <<'PYTHON'
import base64, json, sys, urllib.request
from openai import OpenAI

url, image = sys.argv[1], open(sys.argv[2], "rb").read()
uri = "data:image/png;base64," + base64.b64encode(image).decode()
request = urllib.request.Request(url + "/embed", image, {"Content-Type": "image/png"})
expected = json.load(urllib.request.urlopen(request))["embeddings"][0]
client = OpenAI(base_url=url + "/v1", api_key="none")
for more in ({}, {"encoding_format": "float"}):  # without it the client asks for base64
    answer = client.embeddings.create(model="macrl", input=[uri, uri], **more)
    assert [item.index for item in answer.data] == [0, 1]
    for item in answer.data:
        assert len(item.embedding) == len(expected) and max(abs(a - b) for a, b in zip(item.embedding, expected)) < 1e-5
print("openai: two images, base64 and float, as /embed gives them")
PYTHON
# Not checked: that every body that fits the document is accepted.  Random bytes are not an image.
cd "$work" # it leaves a folder behind
cat > schemathesis.toml <<TOML
# schemathesis' own list, and 413: a request with too many images is refused with it.
checks.negative_data_rejection.expected-statuses = [400, 401, 403, 404, 405, 406, 409, 413, 415, 422, 428, 429, "5xx"]
TOML
"$python" -m schemathesis.cli run "$url/openapi.json" --checks all --exclude-checks positive_data_acceptance \
    --phases examples,coverage,fuzzing -n "${EXAMPLES:-50}"
