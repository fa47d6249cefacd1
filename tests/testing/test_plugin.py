from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

SHOP = """
import asyncio

import pytest

from tidemill import Service, Topic, event
from tidemill.testing import running

payments = Topic("payments")
service = Service("mail")
sent = []


@event("payment.confirmed", topic=payments)
class PaymentConfirmed:
    payment_id: str


@service.on(PaymentConfirmed)
async def send(event: PaymentConfirmed) -> None:
    if event.payment_id == "bad":
        raise OSError("the mail server is away")
    sent.append(event.payment_id)


async def send_one(run, payment_id="1"):
    async with run(service) as mill:
        await mill.publish(PaymentConfirmed(payment_id))
        await mill.settled()
"""


def run(directory: Path, tests: str, *arguments: str) -> str:
    """What pytest says about `tests`, in a process of its own: the plugin is found by its entry point alone."""
    (directory / "test_shop.py").write_text(SHOP + tests)
    (directory / "pytest.ini").write_text("[pytest]\n")
    found = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments],
        cwd=directory,
        check=False,
        capture_output=True,
        text=True,
        timeout=100,
    )
    return found.stdout + found.stderr


def test_the_story_of_a_failed_test_is_in_its_report_also_where_the_block_was_over(tmp_path: Path) -> None:
    text = run(
        tmp_path,
        """
def test_fails_after_the_block():
    asyncio.run(send_one(running, "bad"))
    assert sent


def test_passes():
    asyncio.run(send_one(running))


def test_fails_without_a_mill():
    assert not "other"
""",
        "-rPA",
    )
    assert "2 failed, 1 passed" in text
    assert text.count("- tidemill -") == 1
    first, _, others = text.partition("test_fails_without_a_mill ")
    assert re.search(r"^\+0 s +test published payment.confirmed$", first, re.MULTILINE)
    assert "mail.send, attempt 8: dead letter: OSError: the mail server is away (attempt 8 of 8)" in first
    assert "+0 s" not in others, "one test's story is not in another's report"


def test_each_mill_of_a_test_has_its_story(tmp_path: Path) -> None:
    text = run(
        tmp_path,
        """
def test_fails():
    asyncio.run(send_one(running, "1"))
    asyncio.run(send_one(running, "bad"))
    async def nothing():
        async with running(service):
            pass
    asyncio.run(nothing())
    assert False
""",
    )
    parts = text.split("- tidemill: mill ")
    assert [part[:6] for part in parts[1:]] == ["1 of 3", "2 of 3", "3 of 3"]
    assert "attempt 1: handled" in parts[1]
    assert "attempt 8: dead letter" in parts[2]
    assert "Nothing was published." in parts[3]


def test_the_fixture_is_running(tmp_path: Path) -> None:
    text = run(
        tmp_path,
        """
def test_handles(mill):
    asyncio.run(send_one(mill))
    assert sent == ["1"]


def test_fails(mill):
    asyncio.run(send_one(mill, "bad"))
    assert not sent
""",
    )
    assert "1 failed, 1 passed" in text
    assert "attempt 8: dead letter" in text
    assert "mill" in run(tmp_path, "", "--fixtures")


def test_a_handler_that_hangs_fails_the_test_with_the_way_out(tmp_path: Path) -> None:
    text = run(
        tmp_path,
        """
hanging = Service("slow")


@hanging.on(PaymentConfirmed, timeout=30)
async def hang(event: PaymentConfirmed) -> None:
    await asyncio.Event().wait()


def test_fails():
    async def main():
        async with running(hanging) as mill:
            await mill.publish(PaymentConfirmed("1"))
            await mill.settled(within=0.1)
    asyncio.run(main())
""",
    )
    assert "NotSettled: not settled within 0.1 s of real time." in text
    assert "`await mill.advance(30)` reaches its timeout." in text
    assert "slow.hang, attempt 1: was running when the test ended" in text
    assert "What happened in the mill" not in text, "the section has the story already"


def test_a_mill_of_a_fixture_is_in_the_report_of_the_test(tmp_path: Path) -> None:
    text = run(
        tmp_path,
        """
@pytest.fixture
def world():
    with asyncio.Runner() as runner:
        block = running(service)
        mill = runner.run(block.__aenter__())
        yield lambda coroutine: runner.run(coroutine), mill
        runner.run(block.__aexit__(None, None, None))


def test_fails(world):
    run, mill = world
    run(mill.publish(PaymentConfirmed("bad")))
    run(mill.settled())
    assert not mill.dead_letters()


@pytest.fixture
def broken():
    asyncio.run(send_one(running))
    raise OSError("the fixture is broken")


def test_cannot_begin(broken): ...
""",
    )
    assert "1 failed, 1 error" in text
    assert text.count("- tidemill -") == 2
    assert "attempt 8: dead letter" in text


@pytest.mark.parametrize("backend", ["asyncio", "asyncio+debug"])
def test_under_anyio(tmp_path: Path, backend: str) -> None:
    pytest.importorskip("anyio", exc_type=ImportError)
    debug = backend.endswith("debug")
    text = run(
        tmp_path,
        f"""
pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend():
    return ("asyncio", {{"debug": {debug}}})


@pytest.fixture
async def world():
    async with running(service) as mill:
        yield mill


async def test_one(world):
    await world.publish(PaymentConfirmed("1"))
    await world.settled()
    assert sent == ["1"]


async def test_other(mill):
    async with mill(service) as m:
        await m.publish(PaymentConfirmed("bad"))
        await m.settled()
        assert len(m.dead_letters()) == 1
""",
    )
    assert "2 passed" in text, text


def test_the_plugin_can_be_turned_off(tmp_path: Path) -> None:
    text = run(
        tmp_path,
        "def test_x():\n    asyncio.run(send_one(running, 'bad'))\n    assert 0\n",
        "-p",
        "no:tidemill",
    )
    assert "1 failed" in text
    assert "- tidemill -" not in text


def test_it_costs_test_runs_without_tidemill_next_to_nothing() -> None:
    code = (
        "import sys; import tidemill.testing.plugin; "
        "print(sorted(name for name in sys.modules if name.startswith('tidemill.')))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    for name in ("service", "consumer", "broker", "brokers.memory", "testing.mill"):
        assert f"'tidemill.{name}'" not in found.stdout
