"""One consumer of one subscription: which slots it holds, what it has fetched of them, and what is settled.

Consumers share the slots of a subscription out among themselves. Who holds a slot reads its events without any lock
and writes only when settling, so fetching costs the other processes nothing, and the events of one key, which are all
in one slot, are with one consumer at a time. A consumer that comes or goes changes the subscription's `generation`;
the others see that, and give up or take over slots. A slot is given up once nothing of it is in flight.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Container, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Final

from ...broker import FeedWatcher, Settlement, Subscription
from ...errors import BrokerError
from ...message import Delivery
from ...outcome import RELEASE, Ack
from .file import translate
from .journal import Begun
from .lease import Lease
from .resolving import resolved_since
from .rows import encode, slot_of, to_delivery, to_message
from .settling import Plan
from .sharing import Member
from .slots import Slots
from .sql import SQL
from .wanted import LATER, wanted
from .writer import Unconfirmed

if TYPE_CHECKING:
    from .broker import SqliteBroker

MOST_ROWS: Final = 512
"""Rows read at once: about a millisecond of the event loop's time."""

LEAVE: Final = 5.0
"""Seconds to wait, when closing, until the slots are given back. They go to others anyhow when the lease ends."""

SKIPPED: Final = 1000
"""Events of other types passed by, after which that is recorded, so that a restart does not read them again."""


class SqliteFeed:
    """See `tidemill.broker.Feed`. Its lease is renewed by the writer's thread, whatever the event loop does."""

    def __init__(
        self, broker: SqliteBroker, spec: Subscription, subscription: int, topic: int, owner: str, begun: Begun
    ) -> None:
        self.spec = spec
        self.subscription = subscription
        self.owner = owner
        types = None if spec.types is None else encode(spec.types).decode()
        self._me = Member(subscription, owner, round(spec.lease * 1e9), types, broker, broker.clock.now)
        self._begun = begun
        self.end = begun.end
        self.lease = Lease(self._me, broker.call_soon, self._thought_dead)
        self.let_go = self.lease.let_go
        self._watcher: FeedWatcher | None = None
        self.paused = False
        self.generation = -1
        # Up to which decision about dead letters it has looked at what waits, and whether there are later ones.
        self.touched = 0
        self.disturbed = False
        self.stale = False
        """Whether consumers or slots changed, so that slots are to be shared out again."""
        self.next_due: int | None = 0
        self._broker = broker
        self._topic = topic
        self._types = None if spec.types is None else frozenset(spec.types)
        self._wanted: Container[str] = ()
        self._ordered = spec.ordered
        self._slots = Slots()
        # Whether `_open` is out of order: slots were taken over, and what was older in them than what was open.
        self._mixed = False
        self._open: dict[int, Delivery] = {}
        self._gaps: set[int] = set()
        # What may have a row of its own: whether the commit that was to write it took effect is not known.
        self._unsure: set[int] = set()
        self._extra: dict[int, Delivery] = {}
        self._blocked: dict[str, int] = {}
        self._parked: list[Settlement] = []
        self._held: set[str] = set()  # the keys of those that newer code has to take
        self._skipped = 0
        self._more = False
        self._closed = False
        self._departing = False
        self._turn = asyncio.Lock()

    def watch(self, watcher: FeedWatcher) -> None:
        self._watcher = watcher
        if self.paused:
            watcher.paused(True)

    # ----------------------------------------------------------------- fetch

    async def fetch(self, limit: int, wait: float, max_bytes: int) -> list[Delivery]:
        if self._closed:
            raise BrokerError(f"{self.spec.name} was closed: nothing more comes of it. Subscribe again.")
        loop = asyncio.get_running_loop()
        until = loop.time() + wait
        while not self._closed:
            self._broker.tick()
            if self.stale:
                await self.share_out()
            if self.disturbed:
                await self._look_anew()
            if self._parked:
                await self._park()
            taken = self._read(limit, max_bytes) if limit else []
            if taken or not limit:
                return taken
            if self._parked:
                continue
            if self._skipped >= SKIPPED and not self._open:
                await self._record_skipped()
            if self._more:
                await asyncio.sleep(0)
                continue
            left = until - loop.time()
            if left <= 0:
                break
            await self._broker.news(left, self)
        return []

    def _read(self, limit: int, max_bytes: int) -> list[Delivery]:
        self._more = False
        taken: list[Delivery] = []
        # Without a lease, as far as is known here, the events may be another's: the next renewal tells.
        if not self._slots.mask or self._closed or self.paused or self._departing or self.lease.is_over:
            return taken
        try:
            now = self._broker.clock.now()
            if self.next_due is not None and self.next_due <= now:
                max_bytes = self._read_exceptions(taken, limit, max_bytes, now)
            if len(taken) < limit and (max_bytes > 0 or not taken):
                self._read_log(taken, min(limit - len(taken), MOST_ROWS), max_bytes)
        except sqlite3.Error as error:
            # What was read so far is in flight, and would be so for ever if it did not go out now.
            if not taken:
                raise translate(self._broker.path, error) from error
        return taken

    def _read_exceptions(self, taken: list[Delivery], limit: int, max_bytes: int, now: int) -> int:
        reader = self._broker.reader
        # Those in flight are due too, until they are settled: room for them in the limit, then they are passed by.
        most = limit + len(self._extra) + len(self._gaps)
        parameters = {"subscription": self.subscription, "now": now, "slots": self._slots.mask, "most": most}
        rows = reader.execute(SQL["due_exceptions"], parameters)
        full = False
        seen = 0
        for row in rows:
            seen += 1
            seq = row[0]
            if seq in self._extra or seq in self._open:
                continue
            size = len(row[6])
            if len(taken) >= limit or (size > max_bytes and taken):
                full = True
                break
            max_bytes -= size
            delivery = self._extra[seq] = to_delivery(row, self.spec)
            key = self._key(delivery)
            if key is not None:
                self._count_blocked(key, -1)
            self._hand_out(delivery, taken, waits=key in self._held)
        rows.close()
        if full or seen == most:
            self.next_due = 0
        else:
            self.next_due = reader.execute(SQL["next_due"], parameters).fetchone()[0]
        return max_bytes

    def _read_log(self, taken: list[Delivery], limit: int, max_bytes: int) -> None:
        reader = self._broker.reader
        end = reader.execute(SQL["last_seq"]).fetchone()[0]
        if end <= self._slots.frontier:
            return
        if self._types is None:
            self._read_events(taken, limit, max_bytes, end)
            return
        # In one moment with what is wanted: nothing that was published after that changed is passed by.
        reader.execute("begin")
        try:
            if reader.execute(SQL["generation"], (self.subscription,)).fetchone()[0] == self.generation:
                self._read_events(taken, limit, max_bytes, end)
            else:
                self._more = self.stale = True
        finally:
            reader.execute("commit")

    def _read_events(self, taken: list[Delivery], limit: int, max_bytes: int, end: int) -> None:
        parameters = {"topic": self._topic, "after": self._slots.frontier, "slots": self._slots.mask, "most": limit}
        rows = self._broker.reader.execute(SQL["next_events"], parameters)
        topic, name, types, fetched = self.spec.topic, self.spec.name, self._types, self._slots.fetched
        opened, ordered, blocked, held = self._open, self._ordered, self._blocked, self._held
        last, seen, cut = self._slots.frontier, 0, False
        try:
            for row in rows:
                seq = row[0]
                seen += 1
                known = types is None or row[4] in types
                if (fetched and seq <= fetched.get(row[1], 0)) or not (known or row[4] in self._wanted):
                    last = seq
                    self._skipped += 1
                    continue
                size = len(row[6])
                if size > max_bytes and taken:
                    cut = True
                    break
                max_bytes -= size
                message = to_message(row, topic)
                delivery = opened[seq] = Delivery(message, name, 1, seq, (), row[1])
                last = seq
                if known and not (ordered and (blocked or held)):
                    taken.append(delivery)
                else:
                    key = self._key(delivery)
                    self._hand_out(delivery, taken, waits=key in blocked or key in held)
        except sqlite3.Error:
            self._slots.frontier = last
            raise
        rows.close()
        if not cut and seen < limit:
            last = max(last, end)
        else:
            self._more = True
        self._slots.read(last)

    async def _look_anew(self) -> None:
        """See what waits now that dead letters were replayed or discarded."""
        async with self._turn:  # nothing is being recorded meanwhile, so that the file and what is known here agree
            try:
                touched, counts = resolved_since(
                    self._broker.reader, self.subscription, self.touched, [*self._open, *self._extra]
                )
            except sqlite3.Error as error:
                raise translate(self._broker.path, error) from error
            for key, count in counts:
                if slot_of(key) in self._slots.held:
                    self._blocked.pop(key, None)
                    self._count_blocked(key, count)
            self.touched = touched
            self.disturbed = False
            self.next_due = 0

    def _hand_out(self, delivery: Delivery, taken: list[Delivery], *, waits: bool) -> None:
        """Give it to the consumer, unless an earlier event of its key waits, or newer code has to take it."""
        type = delivery.message.type
        if waits:
            self._parked.append((delivery, RELEASE))
        elif self._types is None or type in self._types or type not in self._wanted:
            taken.append(delivery)
        else:
            self._parked.append((delivery, LATER))
            if (key := self._key(delivery)) is not None:
                self._held.add(key)

    async def _park(self) -> None:
        parked, self._parked = self._parked, []
        try:
            # To the end, even where the fetch is cancelled, as a drain does: what is written must be known here.
            await asyncio.shield(self._record(parked))
        except BaseException:
            self._parked = [*parked, *self._parked]
            raise
        self._held.clear()  # they are exceptions now, and block their keys as such

    async def _record_skipped(self) -> None:
        async with self._turn:
            if not self._open:
                plan = self._new_plan()
                plan.advance = self._slots.positions(self._slots.frontier)
                self._skipped = 0
                await self._broker.write(plan.run)

    # ------------------------------------------------------------------- run

    def begin(self, delivery: Delivery) -> bool:
        seq = delivery.position
        if self.lease.is_over or (self._open.get(seq) or self._extra.get(seq)) is not delivery:
            return False
        return self._begun.begin(delivery)

    # ---------------------------------------------------------------- settle

    async def settle(self, settlements: Sequence[Settlement]) -> list[Delivery]:
        late = await self._record(settlements)
        if self._slots.leaving:
            # Where it fails the outcomes are recorded all the same; the next fetch tries to give up again.
            with suppress(BrokerError, Unconfirmed):
                await self._give_up()
        return late

    async def _record(self, settlements: Sequence[Settlement]) -> list[Delivery]:
        # One at a time: a plan is made from what is known of the rows, and known again only after it has run. And in
        # one step with the caller's own bookkeeping: a fetch in between would bring what the caller still refuses.
        async with self._turn:
            plan = self._plan(settlements)
            if not plan.settled:
                return plan.late
            try:
                lost = await self._broker.write(plan.run)
            except (Unconfirmed, asyncio.CancelledError):
                self._unsure.update(delivery.position for delivery, _ in plan.settled)
                self._unsure.update(seq for seq, _, _, _ in plan.gaps)
                raise
            self._apply(plan, lost)
            if lost:
                plan.late += [delivery for delivery, _ in plan.settled if delivery.token in lost]
                # Not what has been taken again meanwhile: that is another epoch.
                self._drop({slot for slot in lost if self._slots.held.get(slot) == plan.slots[slot]})
            return plan.late

    def _new_plan(self) -> Plan:
        plan = Plan(self.subscription, self.owner, self._broker.clock.now(), self._slots.held.copy())
        plan.touched = self.touched
        return plan

    def _plan(self, settlements: Sequence[Settlement]) -> Plan:
        plan = self._new_plan()
        highest = -1
        done: set[int] = set()
        opened, extra, gaps, unsure = self._open, self._extra, self._gaps, self._unsure
        settled = plan.settled
        for settlement in settlements:
            delivery, outcome = settlement
            seq = delivery.position
            if opened.get(seq) is delivery:
                if seq > highest:  # noqa: PLR1730  a call of max() costs more than all else in this loop
                    highest = seq
                has_row = seq in gaps or seq in unsure
            elif extra.get(seq) is delivery:
                has_row = True
            else:
                plan.late.append(delivery)
                continue
            done.add(seq)
            settled.append(settlement)
            if type(outcome) is Ack and not has_row:
                plan.acked += 1
            else:
                plan.add(delivery, outcome, self._key(delivery), has_row=has_row, parks=self.spec.parks)
        if plan.finished:
            released = {row.key for row in plan.exceptional}
            plan.freed = {key for key in plan.finished if key in self._blocked or key in released}
        if highest >= 0:
            plan.advance = self._slots.positions(highest)
            for seq, delivery in opened.items():
                if seq > highest:
                    if not self._mixed:
                        break
                elif seq not in done and seq not in gaps:
                    plan.gaps.append((seq, delivery.token, self._key(delivery), 0))
        return plan

    def _key(self, delivery: Delivery) -> str | None:
        return delivery.message.key if self._ordered else None

    def _apply(self, plan: Plan, lost: set[int]) -> None:
        for delivery, _ in plan.settled:
            seq = delivery.position
            for table in (self._open, self._extra):
                # Where its slot was lost and taken again meanwhile, another delivery of the same event may be there.
                if table.get(seq) is delivery:
                    del table[seq]
                    self._gaps.discard(seq)
                    self._unsure.discard(seq)
                    self._begun.end(delivery)  # where it failed, that is recorded now
        self._gaps.update(seq for seq, slot, _, _ in plan.gaps if slot not in lost)
        if not self._open:
            self._mixed = False
        for row in plan.exceptional:
            if row.key is not None and row.slot not in lost:
                self._count_blocked(row.key, 1)
            self._sooner(row.due)
        if plan.freed and self._blocked:
            self._sooner(0)

    def _sooner(self, due: int) -> None:
        self.next_due = due if self.next_due is None else min(due, self.next_due)

    def _count_blocked(self, key: str, change: int) -> None:
        count = self._blocked.get(key, 0) + change
        if count > 0:
            self._blocked[key] = count
        else:
            self._blocked.pop(key, None)

    # ----------------------------------------------------------------- slots

    async def share_out(self) -> None:
        """Take the slots that are this consumer's share, and begin to leave those that are not."""
        self.stale = False
        try:
            shared = await self._broker.write(partial(self.lease.share_out, self._slots.held.copy()), ring=True)
        except BaseException:
            self.stale = True
            raise
        self.lease.until = shared.until
        self._broker.bury(shared.gone)
        self._drop({slot for slot, epoch in self._slots.held.items() if shared.held.get(slot, (-1, 0))[0] != epoch})
        taken = {slot: held for slot, held in shared.held.items() if slot not in self._slots.held}
        if taken:
            self._mixed = bool(self._open)
            self._slots.take(taken)
            self._blocked.update(shared.keys)
            self.next_due = 0
        self._slots.keep(shared.share)
        if self._slots.leaving:
            await self._give_up()

    def look_around(self) -> None:
        """See whether another consumer is gone, so that its slots are taken over."""
        if self._me.sees_a_loss(self._broker.reader):
            self.stale = True

    async def _give_up(self) -> None:
        """Let go of the slots to leave, as far as nothing of them is in flight."""
        async with self._turn:
            busy = {delivery.token for delivery in (*self._open.values(), *self._extra.values())}
            idle = {slot: position for slot, position in self._slots.leaving.items() if slot not in busy}
            if not idle:
                return
            try:
                await self._broker.write(partial(self._me.give_up, idle), ring=True)
            except BaseException:
                self.stale = True  # nobody reads them until they are given up: try again soon
                raise
            self._drop(set(idle))

    def _drop(self, slots: set[int]) -> None:
        """Forget slots that are another's now, with all that is in flight of them."""
        if not slots:
            return
        self._slots.drop(slots)
        lost: list[Delivery] = []
        for table in (self._open, self._extra):
            for seq in [seq for seq, delivery in table.items() if delivery.token in slots]:
                lost.append(table.pop(seq))
                self.end(lost[-1])
                self._gaps.discard(seq)
                self._unsure.discard(seq)
        self._parked = [each for each in self._parked if each[0].token not in slots]
        for key in [key for key in self._blocked if slot_of(key) in slots]:
            del self._blocked[key]
        if lost and self._watcher is not None and not self._closed:
            self._watcher.lost(lost)

    def _thought_dead(self) -> None:
        # It stood still for longer than its lease: its slots are another's, or will be.
        if not self._closed:
            self._drop(set(self._slots.held))
            self.stale = True
            self._broker.poke()

    def looked_up(self, generation: int, touched: int, paused: bool) -> None:
        """What the file says of the subscription."""
        if generation != self.generation:
            if self._types is not None:  # first: where it cannot be read now, the next look has to ask again
                self._wanted = wanted(self._broker.reader, self.subscription)
            self.generation = generation
            self.stale = True
        if touched != self.touched:
            self.disturbed = True
        if paused != self.paused:
            self.paused = paused
            if self._watcher is not None:
                self._watcher.paused(paused)

    async def leave(self) -> None:
        self._departing = True
        self._slots.keep(0)
        with suppress(BrokerError, Unconfirmed):  # then `close` gives them back, or the end of the process does
            await self._broker.write(partial(self._me.begin_to_leave, self._slots.held.copy()))
            await self._give_up()

    def forked(self) -> None:
        """In a process that was forked from this one: nothing more comes of it."""
        self._closed = True

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._broker.forget(self)
        try:
            async with asyncio.timeout(LEAVE), self._turn:
                await self._broker.write(self._me.leave, ring=True)
        except (BrokerError, Unconfirmed, TimeoutError):
            pass  # the lease ends, or the process does: either frees the slots
        self._drop(set(self._slots.held))
