"""Tests that kept connections survive every answer that is sent before the body is read; standard library, and requests if installed.

    python bench/serve_keepalive.py http://127.0.0.1:8080 [ROUNDS] [KEY]

For each kind of early answer and each client: a refused request with a 150 KB body, then an ordinary one over the same client.
Fails where any answer is lost.  KEY is the server's, where it asks for one; without one the 401 are left out.
"""
import collections, http.client, sys, urllib.parse

BODY = bytes(150_000)


def early_answers(key, max_body=32 << 20):
    """Status, method, path, headers, body: answers that need no byte of the body."""
    own = {"Authorization": f"Bearer {key}"} if key else {}
    png = {"Content-Type": "image/png"}
    kinds = [
        (415, "POST", "/embed", {**own, "Content-Type": "text/plain"}, BODY),
        (415, "POST", "/embed", {**own, **png, "Content-Encoding": "compress"}, BODY),
        (415, "POST", "/v1/embeddings", {**own, "Content-Type": "text/plain"}, BODY),
        (404, "POST", "/nothing", {**own, **png}, BODY),
        (404, "PUT", "/items/a/b.png", {**own, **png}, BODY),
        (405, "PUT", "/embed", {**own, **png}, BODY),
        (405, "POST", "/health", png, BODY),
        (413, "POST", "/embed", {**own, **png}, bytes(max_body + 1)),
        (200, "GET", "/health", png, BODY),
    ]
    if key:
        kinds += [(401, "POST", path, png, BODY) for path in ("/embed", "/search", "/v1/embeddings")]
    return kinds


def chunked(body):
    """A body without a length, so the server cannot know how much is left."""
    for start in range(0, len(body), 50_000):
        yield body[start:start + 50_000]


class Standard:
    name = "http.client"

    def __init__(self, url):
        self.connection = http.client.HTTPConnection(url.hostname, url.port, timeout=60)
        self.opened = 0

    def ask(self, method, path, headers, body):
        before = self.connection.sock
        self.connection.request(method, path, body, headers, encode_chunked=not isinstance(body, bytes))
        self.opened += self.connection.sock is not before
        answer = self.connection.getresponse()
        answer.read()
        return answer.status


class Requests:
    name = "requests"

    def __init__(self, url):
        import requests
        from requests.adapters import HTTPAdapter

        self.session, self.base = requests.Session(), url.geturl()
        self.session.mount("http://", HTTPAdapter(max_retries=0))

    def ask(self, method, path, headers, body):
        return self.session.request(method, self.base + path, headers=headers, data=body, timeout=60).status_code


def clients():
    try:
        import requests  # noqa: F401
    except ImportError:
        return [Standard]
    return [Standard, Requests]


def run(url, rounds, key=None, max_body=32 << 20):
    """Requests sent, and what went wrong."""
    sent, faults = collections.Counter(), []
    for client in clients():
        for status, method, path, headers, body in early_answers(key, max_body):
            for stream in (False, True):
                if stream and len(body) > len(BODY):
                    continue
                one = client(url)
                for _ in range(rounds if len(body) == len(BODY) else max(1, rounds // 20)):
                    what = f"{client.name}: {status} {method} {path}{' chunked' if stream else ''}"
                    try:
                        sent[client.name] += 2
                        more = {"Transfer-Encoding": "chunked"} if stream and client is Standard else {}
                        found = one.ask(method, path, {**headers, **more}, chunked(body) if stream else body)
                        if found != status:
                            faults.append(f"{what}: {found}")
                        if one.ask("GET", "/health", {}, None) != 200:
                            faults.append(f"{what}: the next request")
                    except Exception as error:  # whatever a client throws, its answer is lost
                        faults.append(f"{what}: {type(error).__name__} {error}")
                        one = client(url)
    return sent, faults


if __name__ == "__main__":
    target = urllib.parse.urlparse(sys.argv[1])
    sent, faults = run(target, int(sys.argv[2]) if len(sys.argv) > 2 else 100, *sys.argv[3:4])
    print(f"{dict(sent)} requests, {len(faults)} lost")
    for fault in faults[:20]:
        print("  " + fault)
    sys.exit(1 if faults else 0)
