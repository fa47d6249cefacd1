"""The web the monitor looks at: a real HTTP server that answers for every host, as a proxy does. No part of the shop.

    …/gone   404: broken for good, which is a result
    …/busy   503 twice, then 200
    …/down   503 for ever
    …        200

The sites of the example do not exist, so the monitor is started with `http_proxy` set to this server.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from urllib.parse import urlsplit

BODY = b"<!doctype html><title>A page</title>\n"


class Web(ThreadingHTTPServer):
    """Counts the requests for each URL, because some pages answer by number."""

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Page)
        self.lock = Lock()
        self.requests: Counter[str] = Counter()
        self.address = f"127.0.0.1:{self.server_address[1]}"

    def status(self, url: str) -> int:
        with self.lock:
            self.requests[url] += 1
            times = self.requests[url]
        match urlsplit(url).path:
            case "/gone":
                return 404
            case "/down":
                return 503
            case "/busy" if times <= 2:
                return 503
            case _:
                return 200


class Page(BaseHTTPRequestHandler):
    server: Web

    def do_GET(self) -> None:
        self.send_response(self.server.status(self.path))
        self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        self.wfile.write(BODY)


@contextmanager
def serving() -> Iterator[Web]:
    """Serve on a free loopback port, in a thread."""
    with Web() as web:
        thread = Thread(target=web.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield web
        finally:
            web.shutdown()
            thread.join()


if __name__ == "__main__":
    options = argparse.ArgumentParser(description="The web the shop's monitor looks at.")
    options.add_argument("--port", type=int, default=8025, help="0 takes a free one (default 8025)")
    with Web(options.parse_args().port) as web:
        print(f"listening on {web.address}", flush=True)
        try:
            web.serve_forever()
        except KeyboardInterrupt:
            pass
