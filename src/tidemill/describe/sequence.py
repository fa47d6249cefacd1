"""Sequence diagrams: of what is declared, and of what really happened in one flow."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from ..broker import Fate, Trace
from ..message import Failure, Message
from .mermaid import SequenceDiagram
from .model import Application, EventModel, SubscriptionModel
from .words import duration, retries


def declared(application: Application) -> str:
    """What is declared, as Mermaid text: which events each topic has, which handler of which service gets them,
    and what happens when it fails.

    Arrows go from topics to services only: who publishes is not declared anywhere, and nothing here is a guess.
    """
    diagram = SequenceDiagram()
    topics = {topic.name: topic for topic in application.topics}
    for topic in application.topics:
        diagram.participant("topic", topic.name)
    for service in application.services:
        diagram.participant("service", service.name)
    for topic in application.topics:
        order = f"in order per {topic.key}" if topic.key is not None else "in no order"
        events = [_declared_event(event) for event in topic.events]
        diagram.note(diagram.participant("topic", topic.name), *(events or ["no events declared"]), order)
    for service in application.services:
        to = diagram.participant("service", service.name)
        if not service.subscriptions:
            diagram.note(to, "subscribes to nothing")
        for subscription in service.subscriptions:
            found = topics.get(subscription.topic)
            versions = {} if found is None else {event.name: event.version for event in found.events}
            start = diagram.participant("topic", subscription.topic)
            for name in versions if subscription.events is None else subscription.events:
                diagram.arrow(start, "->>", to, _named(name, versions.get(name, 1)))
            if not versions and subscription.events is None:
                diagram.arrow(start, "->>", to, "every message")
            diagram.note(to, *_subscription(subscription))
    return diagram.text()


def _declared_event(event: EventModel) -> str:
    older = f" (reads v{event.oldest} and later)" if event.oldest < event.version else ""
    return f"{event.name} v{event.version}{older}"


def _subscription(subscription: SubscriptionModel) -> Iterator[str]:
    yield subscription.handler
    yield retries(subscription.retry)
    yield "then dead letter"
    limit = "no time limit" if subscription.timeout is None else f"each at most {duration(subscription.timeout)}"
    yield f"{limit}, {subscription.concurrency} at once{', in order' if subscription.ordered else ''}"


def happened(trace: Trace) -> str:
    """What happened in a flow, as Mermaid text: who published what, every attempt of every handler, and what those
    handlers published in turn.

    What a service published while it handled an event stands where its time says, between the failed attempts.
    When a successful attempt began is not kept, so a delay is only known between two failures.
    """
    diagram = SequenceDiagram()
    flow = _Flow(trace)
    steps = [flow.published(message, diagram) for message in reversed(flow.roots)]
    # A flow can be thousands of events deep, and what caused each other in a circle has no root.
    while True:
        if not steps:
            left = flow.next_undrawn()
            if left is None:
                break
            steps.append(flow.published(left, diagram))
        caused = next(steps[-1], None)
        if caused is None:
            steps.pop()
        else:
            steps.append(flow.published(caused, diagram))
    if not trace.messages:
        diagram.note(diagram.participant("service", "nobody"), "nothing was published")
    return diagram.text()


class _Flow:
    """A trace, ordered by cause."""

    def __init__(self, trace: Trace) -> None:
        self._sources = {message.source for message in trace.messages}
        self._drawn: set[int] = set()
        self._left = iter(trace.messages)
        # An id is unique per source only. Fates name no source, but come in the order of the messages.
        fates: defaultdict[tuple[str, str], list[Fate]] = defaultdict(list)
        subscriptions: defaultdict[str, list[str]] = defaultdict(list)
        for fate in trace.fates:
            fates[fate.message_id, fate.subscription].append(fate)
            if fate.subscription not in subscriptions[fate.message_id]:
                subscriptions[fate.message_id].append(fate.subscription)
        first: dict[str, Message] = {}
        self._fates: dict[int, list[Fate]] = {}
        for message in trace.messages:
            first.setdefault(message.id, message)
            queues = [fates[message.id, name] for name in subscriptions[message.id]]
            self._fates[id(message)] = [queue.pop(0) for queue in queues if queue]
        self.roots: list[Message] = []
        self._caused: defaultdict[int, list[Message]] = defaultdict(list)
        for message in trace.messages:
            cause = first.get(message.causation_id) if message.causation_id is not None else None
            if cause is None:
                self.roots.append(message)
            else:
                self._caused[id(cause)].append(message)

    def next_undrawn(self) -> Message | None:
        return next((message for message in self._left if id(message) not in self._drawn), None)

    def published(self, message: Message, diagram: SequenceDiagram) -> Iterator[Message]:
        """Draw a message and what came of it; yields, at their places, the messages it caused."""
        if id(message) in self._drawn:
            return
        self._drawn.add(id(message))
        topic = diagram.participant("topic", message.topic)
        name = _named(message.type, message.version)
        diagram.arrow(diagram.participant("service", message.source), "->>", topic, name)
        fates = self._fates[id(message)]
        last = {self._service(fate.subscription): fate for fate in fates}
        caused = list(self._caused[id(message)])
        for fate in fates:
            service = self._service(fate.subscription)
            # Which of a service's handlers published is not known where several had the same event: after the last.
            mine = [each for each in caused if last[service] is fate and each.source == service]
            yield from _handled(diagram, fate, topic, diagram.participant("service", service), name, mine)
        yield from caused  # by nobody with a fate here; what is drawn already is passed over
        if not fates:
            diagram.note(topic, f"nobody subscribed to {name}")

    def _service(self, subscription: str) -> str:
        """The service of a subscription: a name has dots, so one that published is believed first."""
        known = [source for source in self._sources if subscription.startswith(f"{source}.")]
        return max(known, key=len) if known else subscription.rpartition(".")[0] or subscription


def _handled(
    diagram: SequenceDiagram, fate: Fate, topic: str, service: str, event: str, caused: list[Message]
) -> Iterator[Message]:
    handler = fate.subscription
    before: Failure | None = None
    for failure in fate.history:
        gap = _lost(before.attempt if before is not None else 0, failure.attempt)
        if gap:
            diagram.note(service, gap)
        later = "" if before is None else f" {_after(failure.at - before.at)}"
        diagram.arrow(topic, "->>", service, f"{event} to {handler}, attempt {failure.attempt}")
        while caused and caused[0].time < failure.at:
            yield caused.pop(0)
        diagram.arrow(service, "--x", topic, f"failed{later}: {failure.error}")
        before = failure
    failed = before.attempt if before is not None else 0
    match fate.state:
        case "acked":
            if gap := _lost(failed, fate.attempts):
                diagram.note(service, gap)
            diagram.arrow(topic, "->>", service, f"{event} to {handler}, attempt {fate.attempts}")
            yield from caused
            diagram.arrow(service, "-->>", topic, "handled")
        case "dead":
            if failed < fate.attempts:  # no exception: a middleware decided, or the process ended
                diagram.arrow(topic, "->>", service, f"{event} to {handler}, attempt {fate.attempts}")
                diagram.arrow(service, "--x", topic, fate.reason or "given up")
            diagram.note(
                service,
                f"dead letter after {_attempts(fate.attempts)}",
                *([fate.reason] if fate.reason else []),
            )
        case "retrying":
            diagram.note(service, f"{handler} will get {event} again, attempt {max(failed + 1, fate.attempts)}")
        case "pending":
            diagram.note(service, f"{handler} has not handled {event} yet")


def _lost(before: int, now: int) -> str:
    missing = now - before - 1
    return f"{_attempts(missing)} left no record, such as when a process ends" if missing > 0 else ""


def _attempts(count: int) -> str:
    return "1 attempt" if count == 1 else f"{count} attempts"


def _after(nanoseconds: int) -> str:
    return f"{duration(max(0, nanoseconds) / 1e9)} later"


def _named(name: str, version: int) -> str:
    return f"{name} v{version}"
