"""One process that runs services: a worker of a supervisor, or all there is.

A supervisor holds the other end of its worker's standard input and writes nothing to it. When it closes that end, or
dies in whatever way, the worker reads the end of the file and drains: no worker outlives its supervisor. This needs
nothing of the operating system but pipes.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from types import FrameType
from typing import Any

from ..health import health_of
from ..runtime import MARGIN, Runtime, run_until_signal
from ..service import Service
from .load import load
from .log import configure
from .options import run_async
from .probes import Answers, answering, url_of
from .reports import Report, reporting


def run_services(
    targets: Sequence[str],
    url: str,
    grace: float,
    as_json: bool,
    *,
    worker: int | None = None,
    report_to: int | None = None,
    listening: socket.socket | None = None,
) -> None:
    """Load services and run them until told to stop.

    worker     this process's number under a supervisor.
    report_to  the pipe on which that supervisor hears how it is.
    listening  where probes are answered.
    """
    if report_to is not None:
        os.set_inheritable(report_to, False)  # not for the processes that handlers start
    signal.signal(signal.SIGTERM, _end_before_start)
    signal.signal(signal.SIGINT, _end_before_start)
    draining = threading.Event()
    if worker is not None:
        _drain_with_stdin(draining, grace)
    services = load_services(targets)
    say = configure(as_json, worker)

    run: Runtime | None = None

    def ask() -> Answers:
        health = health_of(run)
        return health.live, health.ready, health

    def report() -> Report:
        handled = 0 if run is None else sum(consumer.handled for consumer in run.consumers)
        stuck_after = None if run is None or run.watch is None else run.watch.stuck_after
        return Report(health_of(run), handled, stuck_after)

    def on_starting(runtime: Runtime) -> None:
        nonlocal run
        run = runtime
        if _told_early:
            sys.exit(0)
        if listening is not None:
            say(f"health on {url_of(listening)}/livez and /readyz")

    def on_ready(runtime: Runtime) -> None:
        say(_describe(runtime))

    def on_draining(runtime: Runtime) -> None:
        draining.set()
        count = runtime.running
        running = f"finishing {count:,} running" if count else "nothing is running; ending"
        if worker is None:
            say(f"{running}, press again to force" if count else running)
        else:
            say(running)
            # The supervisor decides on force. A second signal here is the same one by another way: systemd, for one,
            # signals every process of a service.
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, lambda number, frame: None)

    async def work() -> None:
        async with answering(listening, ask), reporting(report_to, report):
            await run_until_signal(
                services, url, grace=grace, starting=on_starting, ready=on_ready, draining=on_draining
            )

    run_async(work())


def load_services(targets: Sequence[str]) -> list[Service[Any]]:
    """The services named, each once. Raises `ConfigurationError` where a name leads to none."""
    services: dict[int, Service[Any]] = {}
    for target in targets:
        service: Service[Any] = load(target, "a Service", lambda thing: isinstance(thing, Service))
        services[id(service)] = service
    return list(services.values())


def _describe(runtime: Runtime) -> str:
    names = [consumer.name for consumer in runtime.consumers]
    if not names:
        services = ", ".join(service.name for service in runtime.services)
        return f"running {services} on {runtime.broker.url}; there are no handlers"
    return f"consuming {', '.join(names)} from {runtime.broker.url}"


_told_early: list[int] = []


def _end_before_start(number: int, frame: FrameType | None) -> None:
    # Nothing was fetched yet, so there is nothing to drain. Remembered, as whatever runs now may swallow the exception.
    _told_early.append(number)
    sys.exit(0)


def _drain_with_stdin(draining: threading.Event, grace: float) -> None:
    """Drain when standard input ends; end the process if that takes too long, as when a handler blocks the loop."""
    private = os.dup(0)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)  # handlers, and the processes they start, must not wait for input that never comes
    os.close(nothing)

    def watch() -> None:
        while os.read(private, 1024):
            pass
        # A signal may have come together with the end; two of them would force the drain.
        if not draining.wait(0.05):
            os.kill(os.getpid(), signal.SIGTERM)
        threading.Event().wait(grace + MARGIN)
        os._exit(1)

    threading.Thread(target=watch, name="tidemill-supervisor", daemon=True).start()
