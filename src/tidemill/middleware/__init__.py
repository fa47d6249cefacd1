"""Middlewares that handlers often have in common. Each is a function that makes one, for `@service.on(..., use=[…])`.

circuit_breaker   handlers that depend on one thing leave it alone together while it is down
log               a line per attempt
throttle          handlers that share one limit wait their turn
"""

from .circuit_breaker import circuit_breaker
from .log import log
from .throttle import throttle

__all__ = ["circuit_breaker", "log", "throttle"]
