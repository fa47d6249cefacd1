from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Awaitable, Callable

import pytest

from tidemill import ConfigurationError
from tidemill.cli.probes import MAX_CONNECTIONS, Answers, answering, bind, url_of

GET = b"GET %s HTTP/1.1\r\nHost: x\r\n\r\n"


def run(talk: Callable[[int], Awaitable[None]], answers: Answers = (True, True, {"live": True})) -> None:
    async def main() -> None:
        listening = bind("0")
        async with answering(listening, lambda: answers):
            await talk(listening.getsockname()[1])

    asyncio.run(main())


async def ask(port: int, request: bytes) -> tuple[int, dict[str, str], bytes]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    async with asyncio.timeout(10):
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    first, *headers = head.decode().split("\r\n")
    return int(first.split()[1]), dict(line.split(": ", 1) for line in headers), body


@pytest.mark.parametrize(
    ("live", "ready", "livez", "readyz"),
    [(True, True, 200, 200), (True, False, 200, 503), (False, False, 503, 503)],
)
def test_the_status_says_it_and_the_body_says_why(live: bool, ready: bool, livez: int, readyz: int) -> None:
    async def talk(port: int) -> None:
        for path, status in ((b"/livez", livez), (b"/readyz", readyz), (b"/readyz?verbose", readyz)):
            found, headers, body = await ask(port, GET % path)
            assert found == status
            assert json.loads(body) == {"why": "because"}
            assert headers["Content-Type"] == "application/json"
            assert headers["Connection"] == "close"
            assert int(headers["Content-Length"]) == len(body)

    run(talk, (live, ready, {"why": "because"}))


@pytest.mark.parametrize(
    ("request_", "status", "text"),
    [
        (GET % b"/", 404, b"/livez and /readyz"),
        (GET % b"/livez/", 404, b""),
        (b"POST /livez HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc", 405, b"GET and HEAD only"),
        (b"GET /livez HTTP/2\r\n\r\n", 400, b""),
        (b"GET /livez\r\n\r\n", 400, b"no HTTP request"),
        (b"\x16\x03\x01\x02\r\n\r\n", 400, b""),
        (b"\xff\xfe \xff HTTP/1.1\r\n\r\n", 400, b""),
        (b"GET /livez HTTP/1.1\r\nX: " + b"x" * 10_000 + b"\r\n\r\n", 400, b""),
    ],
)
def test_what_is_no_probe_is_refused(request_: bytes, status: int, text: bytes) -> None:
    async def talk(port: int) -> None:
        found, headers, body = await ask(port, request_)
        assert found == status
        assert text in body
        assert ("Allow" in headers) == (status == 405)
        assert (await ask(port, GET % b"/livez"))[0] == 200, "it goes on"

    run(talk)


def test_head_has_no_body() -> None:
    async def talk(port: int) -> None:
        found, headers, body = await ask(port, b"HEAD /livez HTTP/1.0\r\n\r\n")
        assert (found, body) == (200, b"")
        assert int(headers["Content-Length"]) > 0

    run(talk)


def test_who_says_nothing_is_hung_up_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tidemill.cli.probes.PATIENCE", 0.1)

    async def talk(port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /livez HTTP/1.1\r\n")
        async with asyncio.timeout(10):
            try:
                assert await reader.read() == b""
            except ConnectionResetError:
                pass
        writer.close()
        assert (await ask(port, GET % b"/livez"))[0] == 200

    run(talk)


def test_no_more_than_some_are_talked_to_at_once() -> None:
    async def talk(port: int) -> None:
        held = [await asyncio.open_connection("127.0.0.1", port) for _ in range(MAX_CONNECTIONS)]
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        async with asyncio.timeout(10):
            with pytest.raises((ConnectionResetError, BrokenPipeError, AssertionError)):
                assert await reader.read() != b""
        writer.close()
        for _, each in held:
            each.close()
        async with asyncio.timeout(10):
            while True:
                try:
                    assert (await ask(port, GET % b"/livez"))[0] == 200
                    return
                except (ConnectionError, IndexError):  # those that were held are still on their way out
                    await asyncio.sleep(0.01)

    run(talk)


@pytest.mark.parametrize("address", ["", "x", "-1", "65536", ":8080", "127.0.0.1:", "127.0.0.1:http", "８０"])
def test_what_is_no_address_is_an_error(address: str) -> None:
    with pytest.raises(ConfigurationError, match=r"is no \[HOST:\]PORT. Nothing was started"):
        bind(address)


def test_an_address_that_is_taken_is_an_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ConfigurationError, match=f"--health {port}: that address cannot be taken"):
            bind(str(port))
    with pytest.raises(ConfigurationError, match="cannot be taken"):
        bind("203.0.113.1:0")


def test_nobody_else_is_let_in_unless_somebody_says_so() -> None:
    for address, host in (("0", "127.0.0.1"), ("0.0.0.0:0", "0.0.0.0")):
        with bind(address) as listening:
            assert listening.getsockname()[0] == host
            assert url_of(listening) == f"http://{host}:{listening.getsockname()[1]}"


@pytest.mark.skipif(not socket.has_ipv6, reason="this machine has no IPv6")
def test_an_address_of_ipv6_is_in_brackets() -> None:
    try:
        listening = bind("[::1]:0")
    except ConfigurationError:
        pytest.skip("this machine has no IPv6")
    with listening:
        assert url_of(listening).startswith("http://[::1]:")
