"""Runs the whole shop for real, one process per service on one SQLite file, and checks every figure.

    make demo                          or: python examples/shop/demo.py
    make demo ARGS="--keep /tmp/shop"  keeps the database and the logs there

Ends by itself when everything is settled. Exit code 0 means: each figure is what the input says it must be.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from input.expected import Figures, figures
from outside.processes import Failed, Process, Processes, processes_in, within

from tidemill import TidemillError
from tidemill.broker import Broker, Inspection, connect
from tidemill.clock import SystemClock

HERE = Path(__file__).parent
PAYMENTS = HERE / "input" / "payments.jsonl"
SITES = HERE / "input" / "sites.jsonl"

SERVICES = ("payments", "notifications", "monitor", "sites")
SUBSCRIPTIONS = ("payments.confirm", "notifications.send_receipt", "monitor.check", "sites.note")

TABLE: dict[str, tuple[str, ...]] = {
    "payments.jsonl": ("lines", "refused", "duplicates"),
    "published": ("payment.received", "payment.confirmed", "site.added", "site.checked"),
    "handled": SUBSCRIPTIONS,
    "retries": SUBSCRIPTIONS,
    "dead letters": SUBSCRIPTIONS,
    "arrived": ("e-mails", "e-mails again", "pages fine", "pages broken"),
}

START_WITHIN = 30.0
SETTLE_WITHIN = 120.0
DRAIN_WITHIN = 30.0


async def demo(folder: Path) -> bool:
    """Run the shop in `folder`. Whether all figures are right."""
    url = f"sqlite:///{folder / 'shop.db'}"
    broker = connect(url, SystemClock())
    await broker.open()
    try:
        async with processes_in(folder) as processes:
            return await run_shop(broker, url, processes)
    finally:
        await broker.close()


async def run_shop(broker: Broker, url: str, processes: Processes) -> bool:
    mailbox, smtp = await processes.start_server("mailbox", "outside/mail.py")
    _, web = await processes.start_server("web", "outside/web.py")
    addresses = {"SHOP_SMTP": smtp, "http_proxy": f"http://{web}", "no_proxy": ""}
    services = [
        await processes.start(name, "-m", "tidemill", "run", f"{name}:service", "--broker", url, variables=addresses)
        for name in SERVICES
    ]
    await until_consuming(broker, services)
    print(f"{len(services)} services, a mailbox and a web server run, a process each. Publishing the input.")

    publish = ("-m", "tidemill", "publish", "contracts:payments", str(PAYMENTS), "--json", "--broker", url)
    publisher = await processes.start("publish", *publish)
    with SITES.open("rb") as lines:
        adder = await processes.start("sites.py", "sites.py", stdin=lines, variables={"TIDEMILL_BROKER": url})
    async with within(SETTLE_WITHIN, "settling"):
        await until_settled(broker, processes, (publisher, adder), mailbox)
    if publisher.code not in {0, 1}:  # 1: some lines were refused
        raise publisher.failed("failed")
    if adder.code != 0:
        raise adder.failed("failed")

    codes = await asyncio.gather(*(service.stop(DRAIN_WITHIN) for service in services))
    for service, code in zip(services, codes, strict=True):
        if code != 0:
            raise service.failed("did not drain after SIGTERM")
    print(f"\nSettled. On SIGTERM all {len(services)} services drained and ended with exit code 0.")

    right = show_table(await count(broker, publisher, mailbox), figures(PAYMENTS, SITES))
    await show_first_payment(broker, processes, url)
    return right


async def until_consuming(broker: Broker, services: Sequence[Process]) -> None:
    """A new subscription starts now, so everybody has to be there before the first line is published."""
    async with within(START_WITHIN, "starting the services"):
        while True:
            for service in services:
                service.check_alive()
            status = (await broker.inspect()).subscriptions
            if {each.name for each in status if each.consumers} == set(SUBSCRIPTIONS):
                return
            await asyncio.sleep(0.05)


async def until_settled(broker: Broker, processes: Processes, publishers: Sequence[Process], mailbox: Process) -> None:
    """Show the counts until all is published and nothing waits any more."""
    live = Live()
    before: Inspection | None = None
    while True:
        published = all(process.code is not None for process in publishers)
        for process in processes.all:
            if process not in publishers:
                process.check_alive()
        now = await broker.inspect()
        live.show(now, len(mails(mailbox)))
        # Twice the same, as the counts of one look need not be of one instant.
        if published and now == before and not any(each.backlog for each in now.subscriptions):
            return
        before = now
        await asyncio.sleep(0.2)


# ----------------------------------------------------------------- the figures


async def count(broker: Broker, publisher: Process, mailbox: Process) -> Figures:
    """What came out: asked of the command that published, of the broker, and of the mailbox."""
    found: Figures = Counter()
    said = json.loads(publisher.output().splitlines()[-1])
    for row in ("refused", "duplicates"):
        found["payments.jsonl", row] = said[row]
    found["payments.jsonl", "lines"] = said["published"] + said["duplicates"] + said["refused"]
    for topic in ("payments", "sites"):
        async for message in broker.read(topic):
            found["published", message.type] += 1
            if message.type == "site.checked":
                found["arrived", "pages fine" if json.loads(message.body)["ok"] else "pages broken"] += 1
    for status in (await broker.inspect()).subscriptions:
        found["handled", status.name] = status.acked
        found["retries", status.name] = status.retried
        found["dead letters", status.name] = status.dead
    for mail in mails(mailbox):
        found["arrived", "e-mails" if json.loads(mail)["times"] == 1 else "e-mails again"] += 1
    return found


def mails(mailbox: Process) -> list[str]:
    """A line of JSON for each e-mail the mailbox has taken."""
    return [line for line in mailbox.output().splitlines() if line.startswith("{")]


def show_table(counted: Figures, expected: Figures) -> bool:
    """Print both, side by side. Whether they agree."""
    print(f"\n{'counted':>53}{'the input says':>16}\n")
    wrong: list[str] = []
    for section, rows in TABLE.items():
        for row in rows:
            one, other = counted[section, row], expected[section, row]
            print(f"  {section if row == rows[0] else '':16}{row:28}{one:7}{other:16}  {'✓' if one == other else '✗'}")
            if one != other:
                wrong.append(f"{section}, {row}: {one} instead of {other}")
        print()
    unlisted = (counted | expected).keys() - {(section, row) for section, rows in TABLE.items() for row in rows}
    wrong += [f"{section}, {row}: counted, and not in the table" for section, row in sorted(unlisted)]
    for line in wrong:
        print(f"  WRONG  {line}")
    return not wrong


async def show_first_payment(broker: Broker, processes: Processes, url: str) -> None:
    async for message in broker.read("payments"):
        flow = message.correlation_id or message.id
        diagram = await processes.start("diagram", "-m", "tidemill", "diagram", "--correlation", flow, "--broker", url)
        if await diagram.wait() != 0:
            raise diagram.failed("did not draw the first payment")
        print(f"The way of the first payment, as `tidemill diagram --correlation {flow}` draws it in Mermaid:\n")
        print(diagram.output().rstrip())
        return


class Live:
    """The counts so far: one block that changes on a terminal, a line per second elsewhere."""

    def __init__(self) -> None:
        self.terminal = sys.stdout.isatty()
        self.began = time.monotonic()
        self.drawn = 0
        self.last = -1

    def show(self, now: Inspection, emails: int) -> None:
        seconds = time.monotonic() - self.began
        found = {each.name: each for each in now.subscriptions}
        statuses = [found[name] for name in SUBSCRIPTIONS]
        if self.terminal:
            lines = [f"  {seconds:5.1f} s {'':22}{'handled':>9}{'to go':>9}{'retries':>9}{'dead':>9}"]
            for each in statuses:
                lines.append(f"  {each.name:30}{each.acked:9}{each.backlog:9}{each.retried:9}{each.dead:9}")
            lines.append(f"  {'e-mails in the mailbox':30}{emails:9}")
            width = shutil.get_terminal_size().columns - 1  # a line that wraps would be two to go up
            up = f"\x1b[{self.drawn}F\x1b[J" if self.drawn else ""
            print(up + "\n".join(line[:width] for line in lines), flush=True)
            self.drawn = len(lines)
        elif int(seconds) > self.last:
            self.last = int(seconds)
            parts = [f"{each.name} {each.acked}, {each.backlog} to go" for each in statuses]
            print(f"{seconds:4.0f} s  {'; '.join(parts)}; e-mails {emails}", flush=True)


# ------------------------------------------------------------------------ main


async def main(folder: Path) -> bool:
    """`demo`, ended in order by Ctrl-C, by SIGTERM, and by a terminal that goes away."""
    task = asyncio.create_task(demo(folder))
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # Once: whoever presses Ctrl-C again must not cut the cleaning up short.
        loop.add_signal_handler(number, lambda: task.cancelling() or task.cancel())
    return await task


def run(keep: Path | None) -> int:
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="tidemill-shop-") as temporary:
        try:
            right = asyncio.run(main(keep or Path(temporary)))
        except (Failed, TidemillError) as error:
            print(f"\nThe demo failed: {error}", file=sys.stderr)
            return 1
        except asyncio.CancelledError:
            print("\nStopped. Every process of the demo has ended.", file=sys.stderr)
            return 130
    print(f"\n{'Every figure is right' if right else 'NOT every figure is right'}; {time.monotonic() - began:.1f} s.")
    if keep is None:
        print('Next: examples/shop/README.md. To look at the dead letters: make demo ARGS="--keep /tmp/shop"')
    else:
        print(f"Next: .venv/bin/tidemill dead-letters list --broker sqlite:///{keep / 'shop.db'}")
    return 0 if right else 1


def new_folder(text: str) -> Path:
    folder = Path(text).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / "shop.db").exists():
        raise argparse.ArgumentTypeError(f"{folder} holds the shop.db of an earlier run: remove it, or name another")
    return folder


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]  # a terminal without ✓ is no reason to fail
    parser = argparse.ArgumentParser(description="Run the shop and check every figure.")
    parser.add_argument("--keep", type=new_folder, metavar="FOLDER", help="keep the database and the logs there")
    sys.exit(run(parser.parse_args().keep))
