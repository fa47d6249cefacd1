"""The mailbox the e-mails end in: a real SMTP server with the habits of real ones. No part of the shop.

    @grey2.example    asks to come back later twice (451), then accepts: greylisting
    @full.example     asks to come back later for ever (452)
    @nobody.example   refuses for good (550)
    anything else     accepts

It prints a line of JSON for each e-mail it takes. `times` says how often that Message-ID has come: 1, unless an
e-mail was sent again.
"""

from __future__ import annotations

import argparse
import asyncio
import email.policy
import re
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from aiosmtpd.smtp import SMTP, Envelope


class Mailbox:
    """What the SMTP server answers; `received` is told of every e-mail."""

    def __init__(self, received: Callable[[dict[str, object]], object]) -> None:
        self.received = received
        self.bounced: Counter[str] = Counter()
        self.times: Counter[str] = Counter()

    async def handle_RCPT(
        self, server: object, session: object, envelope: Envelope, address: str, options: object
    ) -> str:
        domain = address.rpartition("@")[2]
        grey = re.fullmatch(r"grey(\d+)\.example", domain)
        if domain == "nobody.example":
            return "550 nobody of that name lives here"
        if domain == "full.example" or (grey and self.bounced[address] < int(grey[1])):
            self.bounced[address] += 1
            return "452 the mailbox is full" if grey is None else "451 greylisted, come back later"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: object, session: object, envelope: Envelope) -> str:
        content = envelope.content
        assert isinstance(content, bytes)
        mail = email.message_from_bytes(content, policy=email.policy.default)
        message_id = str(mail["Message-ID"])
        self.times[message_id] += 1
        self.received(
            {
                "to": str(mail["To"]),
                "subject": str(mail["Subject"]),
                "message_id": message_id,
                "times": self.times[message_id],
            }
        )
        return "250 OK"


@asynccontextmanager
async def serving(mailbox: Mailbox, port: int = 0) -> AsyncIterator[str]:
    """Serve `mailbox` on a loopback port (0: a free one). Gives its address, as `host:port`."""

    def protocol() -> Any:
        return SMTP(mailbox, hostname="mail.example", enable_SMTPUTF8=True, loop=loop)

    loop = asyncio.get_running_loop()
    server = await loop.create_server(protocol, "127.0.0.1", port)
    async with server:
        host, port = server.sockets[0].getsockname()
        yield f"{host}:{port}"


async def main(port: int) -> None:
    def show(mail: dict[str, object]) -> None:
        print(msgspec.json.encode(mail).decode(), flush=True)

    async with serving(Mailbox(show), port) as address:
        print(f"listening on {address}", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    options = argparse.ArgumentParser(description="The shop's mailbox.")
    options.add_argument("--port", type=int, default=1025, help="0 takes a free one (default 1025)")
    try:
        asyncio.run(main(options.parse_args().port))
    except KeyboardInterrupt:
        pass
