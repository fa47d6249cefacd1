"""Durations and retry policies as people say them."""

from __future__ import annotations

from .model import RetryModel

_SHOWN = 7
"""Delays that are listed one by one; more of them are the same at the cap, or nobody reads them."""


def duration(seconds: float) -> str:
    """Seconds as one or two units: `0.25 s`, `4 s`, `1 min 4 s`, `15 min`, `7 d`."""
    if seconds < 59.95:
        return f"{round(seconds, 3):.3g} s"
    whole = round(seconds)
    for name, size, below, inner in (("d", 86400, 3600, "h"), ("h", 3600, 60, "min"), ("min", 60, 1, "s")):
        if whole >= size:
            count, rest = divmod(whole, size)
            rest //= below
            return f"{count} {name} {rest} {inner}" if rest else f"{count} {name}"
    return f"{whole} s"


def retries(policy: RetryModel) -> str:
    """What becomes of an event that always fails: `8 attempts: 1 at once, then after up to 1 s, 4 s, …`."""
    if policy.attempts == 1:
        return "1 attempt, never retried"
    at_once = min(policy.immediate, policy.attempts - 1)
    delayed = policy.attempts - 1 - at_once
    delays = [_delay(policy, step) for step in range(min(delayed, _SHOWN))]
    parts: list[str] = []
    if at_once:
        parts.append("again at once" if at_once == 1 else f"again {at_once} times at once")
    if delays:
        listed = ", ".join(delays) + (", …" if delayed > _SHOWN else "")
        parts.append(f"{'then' if parts else 'again'} after up to {listed}")
    text = f"{policy.attempts} attempts: {', '.join(parts)}"
    return f"{text}; never after {', '.join(policy.never)}" if policy.never else text


def _delay(policy: RetryModel, step: int) -> str:
    try:
        return duration(min(policy.cap, policy.base * policy.factor**step))
    except OverflowError:
        return duration(policy.cap)
