"""The slots that one consumer holds, and how far it has fetched them."""

from __future__ import annotations


class Slots:
    """All slots are fetched together, from one position on, but for those that were taken over further behind."""

    def __init__(self) -> None:
        self.held: dict[int, int] = {}
        """slot -> epoch."""
        self.mask = 0
        """Those to fetch from: what is held and not to be left."""
        self.leaving: dict[int, int] = {}
        """slot -> what of it has been fetched; it is given up once nothing of it is in flight."""
        self.frontier = 0
        """What is before it has been fetched, or passed by."""
        self.fetched: dict[int, int] = {}
        """slot -> how far beyond the frontier it has been fetched already; empty where none has."""

    def take(self, taken: dict[int, tuple[int, int]]) -> None:
        """Hold more slots: slot -> (epoch, position)."""
        self.fetched = {slot: self.up_to(slot) for slot in self.held if slot not in self.leaving}
        self.fetched.update({slot: position for slot, (_, position) in taken.items()})
        self.held.update({slot: epoch for slot, (epoch, _) in taken.items()})
        self.frontier = min(self.fetched.values())
        if self.frontier == max(self.fetched.values()):
            self.fetched = {}

    def keep(self, share: int) -> None:
        """Begin to leave what is more than a share."""
        staying = sorted(slot for slot in self.held if slot not in self.leaving)
        for slot in staying[share:]:
            self.leaving[slot] = self.up_to(slot)
        self._set_mask()

    def drop(self, slots: set[int]) -> None:
        """Hold these no longer."""
        for slot in slots:
            self.held.pop(slot, None)
            self.leaving.pop(slot, None)
            self.fetched.pop(slot, None)
        self._set_mask()

    def read(self, last: int) -> None:
        """Everything up to `last` has been fetched."""
        self.frontier = last
        if self.fetched and last >= max(self.fetched.values()):
            self.fetched = {}

    def up_to(self, slot: int) -> int:
        """What of a slot has been fetched."""
        if slot in self.leaving:
            return self.leaving[slot]
        return max(self.frontier, self.fetched.get(slot, 0))

    def positions(self, highest: int) -> list[tuple[int, int]]:
        """How far the slots may be said to be settled once everything up to `highest` is settled or an exception:
        (position, mask of slots)."""
        if not self.fetched and not self.leaving:
            return [(highest, self.mask)]
        groups: dict[int, int] = {}
        for slot in self.held:
            position = min(highest, self.up_to(slot))
            groups[position] = groups.get(position, 0) | 1 << slot
        return list(groups.items())

    def _set_mask(self) -> None:
        self.mask = sum(1 << slot for slot in self.held if slot not in self.leaving)
