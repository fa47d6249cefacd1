"""Tidemill: event-driven services that lose nothing. This page is the public API."""

from typing import TYPE_CHECKING

from .errors import (
    BrokerError,
    BrokerUrlError,
    ConfigurationError,
    DecodeError,
    DefinitionError,
    InvalidMessage,
    MissingExtra,
    PublishError,
    Reject,
    RetryAfter,
    TidemillError,
    Unsupported,
)

# Not lazily as the rest is: once its module were loaded by another, `tidemill.event` would be that module.
from .event import Json, Topic, event, upcast

if TYPE_CHECKING:
    from .circuit import Circuit
    from .context import Context
    from .health import Health
    from .message import Delivery, Failure, Message
    from .outcome import Ack, DeadLetter, Outcome, Release, Retry, RetryPolicy
    from .pipeline import Handle, Middleware
    from .rate import Rate
    from .service import Service

__all__ = [
    "Ack",
    "BrokerError",
    "BrokerUrlError",
    "Circuit",
    "ConfigurationError",
    "Context",
    "DeadLetter",
    "DecodeError",
    "DefinitionError",
    "Delivery",
    "Failure",
    "Handle",
    "Health",
    "InvalidMessage",
    "Json",
    "Message",
    "Middleware",
    "MissingExtra",
    "Outcome",
    "PublishError",
    "Rate",
    "Reject",
    "Release",
    "Retry",
    "RetryAfter",
    "RetryPolicy",
    "Service",
    "TidemillError",
    "Topic",
    "Unsupported",
    "event",
    "upcast",
]

_LAZY = {
    "Ack": "outcome",
    "Circuit": "circuit",
    "Context": "context",
    "DeadLetter": "outcome",
    "Delivery": "message",
    "Failure": "message",
    "Handle": "pipeline",
    "Health": "health",
    "Message": "message",
    "Middleware": "pipeline",
    "Outcome": "outcome",
    "Rate": "rate",
    "Release": "outcome",
    "Retry": "outcome",
    "RetryPolicy": "outcome",
    "Service": "service",
}
"""What is loaded when it is first asked for, and from where: `tidemill --help` needs none of it (PEP 562)."""


def __getattr__(name: str) -> object:
    home = _LAZY.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = globals()[name] = getattr(import_module(f".{home}", __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
