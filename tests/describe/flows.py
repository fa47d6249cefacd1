"""Making traces by hand, and traces and applications at random, with the nastiest names there are."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from tidemill import Failure, Message
from tidemill.broker import Fate, Trace
from tidemill.describe.model import (
    Application,
    EventModel,
    RetryModel,
    ServiceModel,
    SubscriptionModel,
    TopicModel,
)

SECOND = 1_000_000_000


def message(id: str, **changes: Any) -> Message:
    """A message published by `shop` at time 0."""
    given: dict[str, Any] = {
        "id": id,
        "source": "shop",
        "type": "order.placed",
        "topic": "orders",
        "time": 0,
        "body": b"{}",
        "correlation_id": "flow",
    }
    return Message(**(given | changes))


def fate(message_id: str, subscription: str = "mail.send", **changes: Any) -> Fate:
    """An event that was handled at the first attempt."""
    given: dict[str, Any] = {"message_id": message_id, "subscription": subscription, "state": "acked"}
    return Fate(**(given | changes))


def failure(attempt: int, seconds: float = 0, error: str = "OSError: no route") -> Failure:
    return Failure(attempt, round(seconds * SECOND), error)


NASTY = [
    *(
        "end",
        "as",
        "wrap: x",
        "nowrap: x",
        "note over",
        "participant",
        "actor",
        "loop",
        "box",
        "title",
        "a as b",
    ),
    *(
        "a;b",
        "a#b",
        "#35;",
        "#quot;",
        "a%%b",
        "%%{init: {}}%%",
        "---",
        "a:b",
        "a,b",
        "a->>b",
        "a--xb",
        "x",
        "-x",
        "()",
    ),
    *(
        "@{ type }",
        "{",
        "}",
        "<br/>",
        "<script>",
        "</",
        '"',
        "'",
        "`",
        "\\",
        "$$x$$",
        "style: a#b;",
        "classDef x: #f00;",
    ),
    *(
        "",
        " ",
        "\n",
        "\r\n",
        "\t",
        "\x00",
        "\x1b[0m",
        "\u2028",
        "\u202e",
        "\ud800",
        "\ue000",
        "é",
        "ключ",
        "订单",
        "🔑",
        "ﬂ°°59¶ß",
    ),
    *(
        "https://example.com/a?b=c&d=e#f",
        "/a/b",
        "autonumber",
        "activate x",
        "accTitle: x",
        "rect rgb(0,0,0)",
        "+",
        "-",
    ),
]

texts = st.one_of(
    st.sampled_from(NASTY),
    st.text(max_size=8),
    st.lists(st.sampled_from(NASTY), min_size=2, max_size=4).map("".join),
    st.text(alphabet="#;:,<>-+x%{}@\n\"'\\", max_size=6),
    st.text(alphabet="end xas:#", min_size=100, max_size=200),
)
ids = st.sampled_from(["1", "2", "3", "4", "5"])
times = st.integers(-(10**12), 10**18)
failures = st.builds(Failure, st.integers(1, 9), times, texts)

messages = st.builds(
    Message,
    id=ids,
    source=texts,
    type=texts,
    topic=texts,
    time=times,
    body=st.just(b""),
    version=st.integers(-1, 99),
    correlation_id=st.none() | ids,
    causation_id=st.none() | ids,
)
fates = st.builds(
    Fate,
    subscription=texts,
    message_id=ids,
    state=st.sampled_from(["pending", "retrying", "acked", "dead"]),
    attempts=st.integers(0, 9),
    history=st.lists(failures, max_size=4).map(tuple),
    reason=texts,
)
traces = st.builds(Trace, st.lists(messages, max_size=6), st.lists(fates, max_size=8))
"""Also what no broker would say: causes in circles, ids twice, fates without messages, times that go backwards."""

retry_models = st.builds(
    RetryModel,
    attempts=st.integers(1, 10**9),
    immediate=st.integers(0, 20),
    base=st.floats(0.001, 100),
    factor=st.floats(1, 1e300),
    cap=st.floats(100, 1e7),
    never=st.lists(texts, max_size=2).map(tuple),
)
subscription_models = st.builds(
    SubscriptionModel,
    name=texts,
    handler=texts,
    function=texts,
    topic=texts,
    events=st.none() | st.lists(texts, max_size=3).map(tuple),
    retry=retry_models,
    timeout=st.none() | st.floats(0.001, 1e7),
)
applications = st.builds(
    Application,
    services=st.lists(
        st.builds(ServiceModel, name=texts, subscriptions=st.lists(subscription_models, max_size=3).map(tuple)),
        max_size=3,
    ).map(tuple),
    topics=st.lists(
        st.builds(
            TopicModel,
            name=texts,
            key=st.none() | texts,
            retain=st.just(1.0),
            events=st.lists(st.builds(EventModel, name=texts), max_size=3).map(tuple),
        ),
        max_size=3,
    ).map(tuple),
)
