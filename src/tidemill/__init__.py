"""Tidemill: event-driven services that lose nothing. This page is the public API."""

from .context import Context
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
from .event import Json, Topic, event, upcast
from .message import Delivery, Failure, Message
from .outcome import Ack, DeadLetter, Outcome, Release, Retry, RetryPolicy
from .pipeline import Handle, Middleware
from .service import Service

__all__ = [
    "Ack",
    "BrokerError",
    "BrokerUrlError",
    "ConfigurationError",
    "Context",
    "DeadLetter",
    "DecodeError",
    "DefinitionError",
    "Delivery",
    "Failure",
    "Handle",
    "InvalidMessage",
    "Json",
    "Message",
    "Middleware",
    "MissingExtra",
    "Outcome",
    "PublishError",
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
