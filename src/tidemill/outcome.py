"""How a delivery ends: four outcomes, and the total function from an exception to one of them.

Every delivery ends in exactly one outcome (G3). Returning normally is `Ack`; what an exception means is decided here,
by `RetryPolicy.outcome_of`, which knows an answer for every exception there is.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any, Final, TypeAlias, cast

import msgspec

from .errors import MAX_DELAY, DecodeError, FutureVersion, ProcessDied, Reject, RetryAfter

MAX_REASON: Final = 500
"""Most characters of a reason: enough to recognise the cause. Tracebacks are kept beside it."""


class Ack(msgspec.Struct, frozen=True, tag=True):
    """Handled. The broker forgets this delivery."""


class Retry(msgspec.Struct, frozen=True, tag=True):
    """Failed, and to be delivered again after `after` seconds. The attempt counts.

    Raises `ValueError` unless `after` is between 0 and a year. The reason is kept as one line of 500 characters.
    """

    after: float
    reason: str

    def __post_init__(self) -> None:
        if not 0 <= self.after <= MAX_DELAY:
            raise ValueError(f"Retry(after={self.after!r}): give seconds, from 0 to a year")
        _tidy(self)


class DeadLetter(msgspec.Struct, frozen=True, tag=True):
    """Given up on. The message is kept with its bytes, headers and history until someone decides.

    The reason is kept as one line of 500 characters.
    """

    reason: str

    def __post_init__(self) -> None:
        _tidy(self)


class Release(msgspec.Struct, frozen=True, tag=True):
    """Given back untouched, as on shutdown; with `after` it is not delivered again before that many seconds.

    The attempt does not count. Raises `ValueError` unless `after` is between 0 and a year. The reason is kept as one
    line of 500 characters.
    """

    after: float = 0.0
    reason: str = ""

    def __post_init__(self) -> None:
        if not 0 <= self.after <= MAX_DELAY:
            raise ValueError(f"Release(after={self.after!r}): give seconds, from 0 to a year")
        if self.reason:
            _tidy(self)


Outcome: TypeAlias = Ack | Retry | DeadLetter | Release

ACK: Final = Ack()
RELEASE: Final = Release()


class RetryPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """When a failed delivery is tried again, and when it is given up. A value: no state, no clock.

    With the defaults an event that always fails is tried 8 times within about a quarter of an hour: twice at once
    (most faults are gone by then), then six times after growing, random delays, which outlast a deployment or
    a failover. Each delay is drawn from its own window: delay number n is at most `base * factor**(n-1)`, or `cap`,
    and at least a `factor`th of that (a half, where factor is below 2). That is spread enough that callers do not
    come back in step, and never a hot loop.

    attempts   how often the handler runs in all, the first run included (default 8).
    immediate  how many of the retries come at once (default 1).
    base       upper end of the first delay, in seconds (default 1).
    factor     what each window is multiplied by (default 4).
    cap        longest delay, in seconds (default 900: a quarter of an hour; at most a year).
    future     seconds that an event of a newer version than this code knows waits for newer code, uncharged, before it
               is a dead letter (default 3600: an hour, which is longer than a deployment takes; at most a year).
    never      exceptions that are permanent: dead letter at the first occurrence (default none).
    only       the exceptions to retry; every other one is a dead letter at once (default None: all are retried). The
               timeout is one more exception: name `TimeoutError` if what took too long is to run again.

    Where an exception is in both `never` and `only`, as a subclass of a class in each, `never` wins. `RetryAfter` asks
    for itself and is in neither. An attempt whose process died is retried whatever they say, as that was no error of
    the handler's. A group of exceptions is in `only` if all that it holds are.

    Raises `ValueError` or `TypeError` where a value makes no sense.
    """

    attempts: int = 8
    immediate: int = 1
    base: float = 1.0
    factor: float = 4.0
    cap: float = 900.0
    future: float = 3600.0
    never: tuple[type[BaseException], ...] = ()
    only: tuple[type[BaseException], ...] | None = None

    def __post_init__(self) -> None:
        for name, count in (("attempts", self.attempts), ("immediate", self.immediate)):
            if type(count) is not int:
                raise TypeError(f"RetryPolicy({name}={count!r}): give a whole number")
        numbers = ("base", self.base), ("factor", self.factor), ("cap", self.cap), ("future", self.future)
        for name, number in numbers:
            if type(number) is bool or not isinstance(cast(object, number), int | float):
                raise TypeError(f"RetryPolicy({name}={number!r}): give a number")
        if self.attempts < 1:
            raise ValueError(f"RetryPolicy(attempts={self.attempts}): at least 1, as the first run counts")
        # Written so that NaN fails too.
        if not 0 <= self.future <= MAX_DELAY:
            raise ValueError(f"RetryPolicy(future={self.future}): give seconds, from 0 to a year")
        if not (self.immediate >= 0 and 0 < self.base <= self.cap <= MAX_DELAY and 1 <= self.factor < math.inf):
            raise ValueError(
                f"RetryPolicy(immediate={self.immediate}, base={self.base}, factor={self.factor}, "
                f"cap={self.cap}): immediate must be 0 or more, base above 0, factor 1 or more, cap no less than "
                "base and no more than a year"
            )
        for name, classes in (("never", self.never), ("only", () if self.only is None else self.only)):
            if not (isinstance(cast(object, classes), tuple) and all(map(is_exception, classes))):
                raise TypeError(f"RetryPolicy({name}={classes!r}): give a tuple of exception classes")
        if self.only is not None:
            self._check_only(self.only)

    def _check_only(self, only: tuple[type[BaseException], ...]) -> None:
        if not only:
            raise ValueError("RetryPolicy(only=()): that retries nothing. Write attempts=1 if that is meant")
        for cls in only:
            if cls in self.never:
                raise ValueError(
                    f"RetryPolicy(never=…, only=…): {cls.__name__} is in both, and cannot be retried and given up at "
                    "once. Take it out of one of them"
                )

    def delay(self, attempt: int, uniform: Callable[[float, float], float] = random.uniform) -> float:
        """Seconds to wait after failed attempt number `attempt` (1 is the first)."""
        step = attempt - self.immediate - 1
        if step < 0:
            return 0.0
        try:
            high = min(self.cap, self.base * self.factor**step)
        except OverflowError:
            high = self.cap
        return uniform(high / max(self.factor, 2.0), high)

    def outcome_of(self, error: BaseException, attempt: int) -> Outcome:
        """The outcome of attempt number `attempt` that ended in `error`. Total: every exception has one.

        A group that holds a single exception, as `asyncio.TaskGroup` raises them, counts as that exception.
        """
        error = _only(error)
        if isinstance(error, Reject):
            return DeadLetter(_reason(error))
        if isinstance(error, FutureVersion):
            return Release(1.0, describe(error))  # for how long in all, whoever knows since when decides
        if isinstance(error, DecodeError):
            return DeadLetter(describe(error))
        asked = error if isinstance(error, RetryAfter) else None
        if self.never and asked is None and not isinstance(error, ProcessDied) and isinstance(error, self.never):
            return DeadLetter(f"{describe(error)} (an error the policy never retries)")
        if self.only is not None and asked is None and not is_one_of(error, (*self.only, ProcessDied)):
            names = ", ".join([cls.__name__ for cls in self.only])
            return DeadLetter(f"{describe(error)} (an error the policy does not retry: only {names})")
        if attempt >= self.attempts:
            return DeadLetter(f"{describe(error)} (attempt {attempt} of {self.attempts})")
        if asked is not None:
            # The delay is absent where a subclass forgot to call its base.
            return Retry(getattr(asked, "delay", self.delay(attempt)), _reason(asked))
        return Retry(self.delay(attempt), describe(error))


def describe(error: BaseException) -> str:
    """One line for people: the exception's type and text, at most 500 characters that every store can hold."""
    error = _only(error)
    try:
        text = str(error)
    except BaseException:  # a broken __str__ must not cost the delivery its outcome
        text = "<its text could not be read>"
    name = type(error).__name__
    return one_line(f"{name}: {text}" if text else name)


def one_line(text: str) -> str:
    """`text` cut to 500 characters of one line, without control characters and lone surrogates.

    Exceptions have both (a file's name that is not UTF-8 is enough), and neither survives JSON or a database.
    """
    text = text[: 4 * MAX_REASON]
    if not text.isprintable():
        text = " ".join(text.split())
        text = "".join(char if _is_storable(char) else ascii(char)[1:-1] for char in text)
    return text if len(text) <= MAX_REASON else text[: MAX_REASON - 1] + "…"


def _is_storable(char: str) -> bool:
    return char.isprintable() or not (char < " " or "\x7f" <= char < "\xa0" or "\ud800" <= char <= "\udfff")


def _tidy(outcome: Retry | DeadLetter | Release) -> None:
    reason = cast(object, outcome.reason)
    tidy = one_line(reason if isinstance(reason, str) else str(reason))
    if tidy is not reason:
        msgspec.structs.force_setattr(outcome, "reason", tidy)


def _only(error: BaseException) -> BaseException:
    is_group = isinstance(error, BaseExceptionGroup)
    inside: tuple[BaseException, ...] = cast(Any, error).exceptions if is_group else ()
    return _only(inside[0]) if len(inside) == 1 else error


def is_one_of(error: BaseException, classes: tuple[type[BaseException], ...]) -> bool:
    """Whether an exception is of one of these classes, or is a group and all that it holds are."""
    if isinstance(error, classes):
        return True
    is_group = isinstance(error, BaseExceptionGroup)
    inside: tuple[BaseException, ...] = cast(Any, error).exceptions if is_group else ()
    return bool(inside) and all(is_one_of(each, classes) for each in inside)


def _reason(error: Reject | RetryAfter) -> str:
    reason = getattr(error, "reason", None)
    return reason if isinstance(reason, str) else describe(error)


def is_exception(cls: object) -> bool:
    """Whether it is a class of exceptions."""
    return isinstance(cls, type) and issubclass(cls, BaseException)
