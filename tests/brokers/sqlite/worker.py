"""A process on a broker's file, for the tests to kill, stop and continue. It says what it does, a line each.

worker.py consume PATH LEASE HOLD      fetch, wait HOLD seconds, acknowledge, and so on
worker.py block PATH LEASE SECONDS     fetch once, block the event loop for SECONDS, acknowledge
worker.py transaction PATH SECONDS     stay inside a transaction
worker.py idle PATH                    consume nothing, for measuring
worker.py orphan PATH                  open, fork, and let the child live on
worker.py fork PATH                    open, fork, use it in the child, then in the parent
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import sys
import time

from tidemill.broker import Subscription, TopicSpec, connect
from tidemill.brokers.sqlite.broker import SqliteBroker
from tidemill.clock import SystemClock
from tidemill.message import Message
from tidemill.outcome import ACK

MAX_BYTES = 64 * 1024 * 1024


def say(*words: object) -> None:
    print(*words, flush=True)


async def opened(path: str) -> SqliteBroker:
    broker = connect(f"sqlite:///{path}", SystemClock())
    assert isinstance(broker, SqliteBroker)
    await broker.open()
    return broker


def spec(lease: str = "30") -> Subscription:
    return Subscription(name="shop.handle", topic="orders", ordered=True, start="beginning", lease=float(lease))


async def consume(path: str, lease: str, hold: str) -> None:
    broker = await opened(path)
    await broker.declare([TopicSpec("orders", "customer")], [spec(lease)])
    feed = await broker.subscribe(spec(lease))
    say("ready", time.time())
    while True:
        taken = await feed.fetch(100, 1.0, MAX_BYTES)
        if not taken:
            continue
        say("got", time.time(), *(delivery.message.id for delivery in taken))
        await asyncio.sleep(float(hold))
        late = await feed.settle([(delivery, ACK) for delivery in taken])
        say("late", *(delivery.message.id for delivery in late))


async def block(path: str, lease: str, seconds: str) -> None:
    broker = await opened(path)
    await broker.declare([TopicSpec("orders", "customer")], [spec(lease)])
    feed = await broker.subscribe(spec(lease))
    taken = await feed.fetch(100, 10.0, MAX_BYTES)
    say("got", *(delivery.message.id for delivery in taken))
    time.sleep(float(seconds))
    late = await feed.settle([(delivery, ACK) for delivery in taken])
    say("late", *(delivery.message.id for delivery in late))
    await broker.close()


async def transaction(path: str, seconds: str) -> None:
    broker = await opened(path)

    def stay(connection: sqlite3.Connection) -> None:
        connection.execute("update tidemill_topic set retain = retain")
        say("inside")
        time.sleep(float(seconds))

    await broker.write(stay)
    say("outside")
    await broker.close()


async def idle(path: str) -> None:
    broker = await opened(path)
    await broker.declare([TopicSpec("orders", "customer")], [spec()])
    feed = await broker.subscribe(spec())
    say("ready")
    while True:
        await feed.fetch(100, 1.0, MAX_BYTES)


async def orphan(path: str) -> None:
    broker = await opened(path)
    await broker.declare([TopicSpec("orders", "customer")], [spec()])
    feed = await broker.subscribe(spec())
    taken = await feed.fetch(100, 10.0, MAX_BYTES)
    child = os.fork()
    if not child:
        time.sleep(30)
        os._exit(0)
    say("child", child, *(delivery.message.id for delivery in taken))
    await asyncio.sleep(30)


async def fork(path: str) -> None:
    broker = await opened(path)
    await broker.declare([TopicSpec("orders", "customer")], [spec()])
    feed = await broker.subscribe(spec())
    child = os.fork()
    if not child:
        try:
            for use in (broker.publish([Message("c", "tests", "t", "orders", 0, b"{}")]), feed.fetch(1, 0.0, 1)):
                try:
                    use.send(None)
                except BaseException as error:
                    say("child:", type(error).__name__, error)
                else:
                    say("child waits for ever")
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    await broker.publish([Message("p", "tests", "t", "orders", 0, b"{}")])
    taken = await feed.fetch(10, 5.0, MAX_BYTES)
    late = await feed.settle([(delivery, ACK) for delivery in taken])
    say("parent got", *(delivery.message.id for delivery in taken), "late", len(late))
    await broker.close()


if __name__ == "__main__":
    asyncio.run(globals()[sys.argv[1]](*sys.argv[2:]))
