"""Order per key inside one consumer (G6): of each key one event runs, and the others wait behind it."""

from __future__ import annotations

from collections import deque

from .broker import Settlement
from .message import Delivery
from .outcome import RELEASE, DeadLetter, Outcome, Release, Retry


class Lanes:
    """A lane per key that has an event ready or running; its followers wait in the order they were fetched.

    An event that goes back to the broker takes its followers along, and so goes whatever else was fetched of its key
    meanwhile, until the broker has recorded all of it and holds the key's events in order by itself. It may deliver
    the first of them again before its answer is here: that one is let in, and the lane begins anew behind it. What
    comes after one that is still going back is not: its turn is when that one has come again.

    parks   whether a dead letter goes back too, as far as its key is concerned, for its key waits for it.
    """

    def __init__(self, parks: bool = False) -> None:
        self._returning = (Retry, Release, DeadLetter) if parks else (Retry, Release)
        self._lanes: dict[str, deque[Delivery]] = {}
        # key -> where those of its events stand that are going back.
        self._going_back: dict[str, list[int]] = {}

    def sort(self, deliveries: list[Delivery], ready: deque[Delivery]) -> list[Settlement]:
        """Put deliveries where they belong: what may run is added to `ready`; what must go back is returned."""
        lanes = self._lanes
        back: list[Settlement] = []
        for delivery in deliveries:
            key = delivery.message.key
            if key is None:
                ready.append(delivery)
            elif key in self._going_back and delivery.position > min(self._going_back[key]):
                self._going_back[key].append(delivery.position)
                back.append((delivery, RELEASE))
            elif key in lanes:
                lanes[key].append(delivery)
            else:
                lanes[key] = deque()
                ready.append(delivery)
        return back

    def finish(self, delivery: Delivery, outcome: Outcome, ready: deque[Delivery]) -> list[Settlement]:
        """An event has its outcome: its lane's next is added to `ready`, or its followers are returned to go back."""
        key = delivery.message.key
        if key is None:
            return []
        if isinstance(outcome, self._returning):
            followers = self._lanes.pop(key, ())
            positions = self._going_back.setdefault(key, [])
            positions.append(delivery.position)
            positions += [follower.position for follower in followers]
            return [(follower, RELEASE) for follower in followers]
        if followers := self._lanes[key]:
            ready.append(followers.popleft())
        else:
            del self._lanes[key]
        return []

    def recorded(self, settlements: list[Settlement]) -> None:
        """The broker has these outcomes."""
        if not self._going_back:
            return
        for delivery, outcome in settlements:
            key = delivery.message.key
            positions = None if key is None else self._going_back.get(key)
            if positions and isinstance(outcome, self._returning) and delivery.position in positions:
                positions.remove(delivery.position)
                if key is not None and not positions:
                    del self._going_back[key]

    def empty(self, ready: deque[Delivery]) -> list[Delivery]:
        """Take out all that has not begun, `ready` and what waits behind it or behind what runs: it goes back."""
        waiting = list(ready)
        ready.clear()
        for head in tuple(waiting):
            waiting += [follower for follower, _ in self.finish(head, RELEASE, ready)]
        for key, followers in self._lanes.items():
            if followers:
                self._going_back.setdefault(key, []).extend(follower.position for follower in followers)
                waiting += followers
                followers.clear()
        return waiting
