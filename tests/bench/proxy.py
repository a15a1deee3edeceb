"""A proxy that behaves like a bad network between drivers and an MLflow server.

It loses, cuts, refuses, repeats or delays requests and answers.
"""

from __future__ import annotations

import random
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import urlparse

#: What the proxy does to a request. It may send a request to the server twice (`doubled`), not at all, with
#: the answer 500 (`refused`), or after a delay (`late`). Or it may lose the server's answer (`lost`), replace
#: it by 500 (`failed`), or send half of it: with the length of the whole answer in the header (`cut`), or
#: with the length of the half (`shortened`).
Fault = Literal["lost", "cut", "shortened", "failed", "doubled", "refused", "late"]

#: Chooses the fault of a request to an endpoint. None: the request passes.
Choose = Callable[[str], Fault | None]


def endpoint_of(method: str, path: str) -> str:
    """The endpoint of a request: its method and its path without the query.

    All artifacts count as one endpoint.
    """
    path = urlparse(path).path.removeprefix("/api/2.0/")
    return f"{method} " + re.sub(r"(artifacts/artifacts).*", r"\1", path)


def first_of_each(fault: Fault) -> Choose:
    """Makes a function that chooses the fault for the first request to each endpoint, and None later."""
    seen: set[str] = set()

    def choose(endpoint: str) -> Fault | None:
        if endpoint in seen:
            return None
        seen.add(endpoint)
        return fault

    return choose


def share(fraction: float, *faults: Fault, seed: int = 0) -> Choose:
    """Makes a function that chooses one of these faults for a random share of all requests."""
    chance = random.Random(seed)
    return lambda endpoint: chance.choice(faults) if chance.random() < fraction else None


class Proxy:
    """Forwards requests to a server, with the faults that its attribute `choose` chooses.

    At first there are no faults. `choose` may be replaced at any time.
    """

    def __init__(self, server: str) -> None:
        self.server = urlparse(server).netloc
        self.choose: Choose = lambda endpoint: None
        #: The longest delay of a late request in seconds.
        self.delay = 0.5
        #: Ends all delays.
        self.go_on = threading.Event()
        #: The number of times that each fault was chosen for each endpoint.
        self.faults: Counter[tuple[str, Fault]] = Counter()
        #: The number of requests to each endpoint.
        self.requests: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"proxy": self}))
        self._http.daemon_threads = True
        self.uri = f"http://127.0.0.1:{self._http.server_address[1]}"
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    def fault(self, endpoint: str) -> Fault | None:
        with self._lock:
            self.requests[endpoint] += 1
            if chosen := self.choose(endpoint):
                self.faults[endpoint, chosen] += 1
            return chosen

    def close(self) -> None:
        self.go_on.set()
        self._http.shutdown()
        self._http.server_close()


@contextmanager
def proxy(server: str) -> Iterator[Proxy]:
    made = Proxy(server)
    try:
        yield made
    finally:
        made.close()


class _Handler(BaseHTTPRequestHandler):
    proxy: Proxy

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fault = self.proxy.fault(endpoint_of(self.command, self.path))
        self.close_connection = True
        if fault == "refused":
            self._answer(500, b"")
            return
        if fault == "late":
            self.proxy.go_on.wait(self.proxy.delay)
        if fault == "doubled":
            self._pass_on(body)
        status, kind, content = self._pass_on(body)
        if fault == "failed":
            status, content = 500, b""
        if fault == "lost":
            return
        sent = content[: len(content) // 2] if fault in ("cut", "shortened") else content
        self._answer(status, sent, kind, len(sent) if fault == "shortened" else len(content))

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = _serve  # noqa: N815

    def _pass_on(self, body: bytes) -> tuple[int, str, bytes]:
        server = HTTPConnection(self.proxy.server)
        try:
            headers = {key: value for key, value in self.headers.items() if key.lower() != "host"}
            server.request(self.command, self.path, body or None, headers | {"Connection": "close"})
            answer = server.getresponse()
            return answer.status, answer.getheader("Content-Type", "application/json"), answer.read()
        except OSError:
            return 502, "text/plain", b"the server is away"
        finally:
            server.close()

    def _answer(self, status: int, content: bytes, kind: str = "text/plain", size: int | None = None) -> None:
        # The client may have given up.
        with suppress(OSError):
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content) if size is None else size))
            self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Logs nothing."""
