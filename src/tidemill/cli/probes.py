"""`/livez` and `/readyz` over HTTP, for orchestrators and for people with curl: as much of HTTP as a probe speaks.

It answers GET and HEAD, closes every connection, reads at most 8 KiB of a request and gives it five seconds, and talks
to at most 32 at once. There is nothing here to be secret, and no TLS.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Final

import msgspec

from ..errors import ConfigurationError

HOST: Final = "127.0.0.1"
"""Where nobody says otherwise: what is open to the network is open because somebody wrote so."""

MAX_REQUEST: Final = 8192
PATIENCE: Final = 5.0
MAX_CONNECTIONS: Final = 32

Answers = tuple[bool, bool, object]
"""Whether live, whether ready, and the body, which becomes JSON."""

Ask = Callable[[], Answers]

_encode = msgspec.json.Encoder().encode


def bind(address: str) -> socket.socket:
    """Take `[HOST:]PORT`, before anything starts. Port 0 is any free one.

    Raises `ConfigurationError` where that is no address, or is not to be had.
    """
    host, colon, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]") if colon else HOST
    if not (port.isascii() and port.isdecimal() and int(port) < 65536 and host):
        raise ConfigurationError(
            f"--health {address}: that is no [HOST:]PORT. Nothing was started. Write a port, such as 8080, or a host "
            "and a port: 0.0.0.0:8080 to be reached from other machines, [::]:8080 by IPv6 too."
        )
    try:
        family, _, _, _, found = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)[0]
        return socket.create_server((found[0], found[1]), family=family, backlog=MAX_CONNECTIONS)
    except OSError as error:
        raise ConfigurationError(
            f"--health {address}: that address cannot be taken ({error}). Nothing was started. Stop whoever has it, "
            "or name another."
        ) from error


def url_of(listening: socket.socket) -> str:
    """Where it listens, for people."""
    host, port = listening.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


@asynccontextmanager
async def answering(listening: socket.socket | None, ask: Ask) -> AsyncGenerator[None]:
    """Answer probes while the block runs, with what `ask` says each time. Without a socket, nothing."""
    if listening is None:
        yield
        return
    probes = _Probes(ask)
    server = await asyncio.start_server(probes.talk, sock=listening, limit=MAX_REQUEST)
    try:
        yield
    finally:
        server.close()
        for task in tuple(probes.talking):
            task.cancel()


class _Probes:
    def __init__(self, ask: Ask) -> None:
        self.talking: set[asyncio.Task[object]] = set()
        self._ask = ask

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One request, one response."""
        task = asyncio.current_task()
        assert task is not None
        try:
            if len(self.talking) >= MAX_CONNECTIONS:
                return
            self.talking.add(task)
            async with asyncio.timeout(PATIENCE):
                writer.write(await self._respond(reader))
                await writer.drain()
                writer.close()
                await writer.wait_closed()
        except (OSError, TimeoutError, asyncio.CancelledError):
            pass  # whoever asked has gone, or takes too long
        finally:
            self.talking.discard(task)
            writer.transport.abort()

    async def _respond(self, reader: asyncio.StreamReader) -> bytes:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            method, target, version = head.split(b"\r\n", 1)[0].decode("ascii").split(" ")
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError):
            return _response(HTTPStatus.BAD_REQUEST, _error("that is no HTTP request"))
        if not version.startswith("HTTP/1."):
            return _response(HTTPStatus.BAD_REQUEST, _error("HTTP/1.1 is what is spoken here"))
        if method not in ("GET", "HEAD"):
            return _response(HTTPStatus.METHOD_NOT_ALLOWED, _error("GET and HEAD only"), "Allow: GET, HEAD\r\n")
        path = target.partition("?")[0]
        if path not in ("/livez", "/readyz"):
            return _response(HTTPStatus.NOT_FOUND, _error("there are /livez and /readyz"), head_only=method == "HEAD")
        live, ready, body = self._ask()
        status = HTTPStatus.OK if (live if path == "/livez" else ready) else HTTPStatus.SERVICE_UNAVAILABLE
        return _response(status, body, head_only=method == "HEAD")


def _error(text: str) -> dict[str, str]:
    return {"error": text}


def _response(status: HTTPStatus, body: object, headers: str = "", *, head_only: bool = False) -> bytes:
    content = _encode(body) + b"\n"
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(content)}\r\nCache-Control: no-store\r\nConnection: close\r\n{headers}\r\n"
    )
    return head.encode() + (b"" if head_only else content)
