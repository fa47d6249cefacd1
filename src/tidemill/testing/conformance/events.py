"""The events that scenarios with services are about."""

from __future__ import annotations

from ... import Json, Topic, event, upcast
from ...outcome import RetryPolicy

orders = Topic("orders", key="customer")
notes = Topic("notes")
archive = Topic("archive")


@event("order.placed", topic=orders)
class OrderPlaced:
    """An event of a topic with a key."""

    customer: str
    number: int


@event("order.paid", topic=orders)
class OrderPaid:
    """Another event of the same topic."""

    customer: str
    number: int


@event("note.taken", topic=notes)
class NoteTaken:
    """An event of a topic without a key."""

    number: int
    text: str = ""


@event("file.kept", version=3, topic=archive)
class FileKept:
    """An event whose schema has changed twice."""

    name: str
    size: int
    owner: str


@upcast(FileKept, from_version=1)
def add_size(v1: Json) -> Json:
    """Version 1 did not know the size."""
    return v1 | {"size": 0}


@upcast(FileKept, from_version=2)
def rename_user(v2: Json) -> Json:
    """Version 2 called the owner a user."""
    return {name: value for name, value in v2.items() if name != "user"} | {"owner": v2.get("user", "nobody")}


def soon(attempts: int = 8, **options: object) -> RetryPolicy:
    """A policy that retries within milliseconds."""
    return RetryPolicy(attempts=attempts, immediate=0, base=0.01, cap=0.01, **options)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
