"""Who is alive: at once where a process ended, by its lease where it only stands still."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from tidemill.brokers.sqlite.journal import CELLS
from tidemill.brokers.sqlite.live import Life


def test_a_life_is_seen_by_others_until_it_ends(tmp_path: Path) -> None:
    mine, other = Life(f"{tmp_path}/a.db"), Life(f"{tmp_path}/a.db")
    assert mine.is_alive(other.token)
    assert mine.is_alive(mine.token)
    other.end()
    assert not mine.is_alive(other.token)
    mine.end()
    assert list(tmp_path.iterdir()) == [], "the last one takes the folder along"


def test_a_death_is_seen_by_all_however_many_look_at_once(tmp_path: Path) -> None:
    first, second, victim = (Life(f"{tmp_path}/a.db") for _ in range(3))
    victim.forked()  # what the kernel does when a process ends
    # Both have the dead one's file open; the first to get the lock takes the file away.
    file = os.open(victim._folder / victim.token, os.O_RDWR)
    assert not first.is_alive(victim.token)
    first.bury(victim.token)
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(file)
    assert not second.is_alive(victim.token)
    second.bury(victim.token)
    assert not first.is_alive(victim.token)
    first.end(), second.end()


def test_the_folder_goes_away_while_another_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last process takes the folder away in the moment in which a new one has seen that it is there."""
    opened, missing = os.open, []

    def open_late(path: Path, *arguments: int) -> int:
        if not missing:
            missing.append(path)
            path.parent.rmdir()
        return opened(path, *arguments)

    monkeypatch.setattr(os, "open", open_late)
    life = Life(f"{tmp_path}/a.db")
    assert missing
    monkeypatch.undo()
    other = Life(f"{tmp_path}/a.db")
    assert other.is_alive(life.token)
    life.end(), other.end()


def test_a_sign_that_was_found_before_it_was_locked_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever cleans up behind the dead may meet a file whose process is about to lock it."""
    other = Life(f"{tmp_path}/a.db")
    lock, taken = fcntl.flock, []

    def lock_late(file: int, how: int) -> None:
        if not taken:
            (name,) = [each for each in os.listdir(f"{tmp_path}/a.db-live") if each != other.token]
            taken.append(name)
            other.bury(name)
        lock(file, how)

    monkeypatch.setattr(fcntl, "flock", lock_late)
    life = Life(f"{tmp_path}/a.db")
    # By another name: a second one that cleans up, and had found the first file too, would take the new one away.
    assert taken != [life.token]
    assert other.is_alive(life.token)
    assert sorted(os.listdir(life._folder)) == sorted([life.token, other.token])
    life.end(), other.end()


def test_what_the_dead_left_is_cleared_away(tmp_path: Path) -> None:
    dead, living = Life(f"{tmp_path}/a.db"), Life(f"{tmp_path}/a.db")
    dead.forked()
    new = Life(f"{tmp_path}/a.db")
    assert sorted(os.listdir(new._folder)) == sorted([living.token, new.token])
    living.end(), new.end()


def test_what_the_dead_left_stays_until_it_is_charged(tmp_path: Path) -> None:
    dead = Life(f"{tmp_path}/a.db")
    cells = [dead.journal.put(1, (3, 2), seq) for seq in (7, 8, 9)]
    dead.journal.put(2, (1, 0), 11)
    dead.journal.clear(cells[1])
    known = {dead.token}
    dead.forked()
    other = Life(f"{tmp_path}/a.db", known.__contains__)
    assert not other.is_alive(dead.token)
    other.bury(dead.token)
    assert other.running(dead.token, 1) == {7: (3, 2), 9: (3, 2)}
    assert other.running(dead.token, 2) == {11: (1, 0)}
    known.clear()
    other.bury(dead.token)
    assert os.listdir(other._folder) == [other.token]
    assert other.running(dead.token, 1) == {}
    other.end()


def test_a_journal_grows_and_forgets_nothing(tmp_path: Path) -> None:
    life, other = Life(f"{tmp_path}/a.db"), Life(f"{tmp_path}/a.db")
    cells = {seq: life.journal.put(1, (seq % 7 + 1, seq % 5), seq) for seq in range(1, 3 * CELLS)}
    assert len(set(cells.values())) == len(cells)
    for seq in range(1, 3 * CELLS, 2):
        life.journal.clear(cells[seq])
    assert other.running(life.token, 1) == {seq: (seq % 7 + 1, seq % 5) for seq in range(2, 3 * CELLS, 2)}
    life.end(), other.end()


def test_a_journal_that_finds_no_room_grows_when_there_is_some(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    life, other = Life(f"{tmp_path}/a.db"), Life(f"{tmp_path}/a.db")
    for seq in range(1, CELLS + 1):
        life.journal.put(1, (1, 0), seq)
    write = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, data, at: write(file, data[:100], at))  # the disk is full then
    for _ in range(2):
        with pytest.raises(OSError, match="No space left"):
            life.journal.put(1, (1, 0), CELLS + 1)
    monkeypatch.undo()
    for seq in range(CELLS + 1, 2 * CELLS + 1):
        life.journal.put(1, (1, 0), seq)
    assert other.running(life.token, 1) == dict.fromkeys(range(1, 2 * CELLS + 1), (1, 0))
    assert os.fstat(life._file).st_size == 2 * CELLS * 32
    life.end(), other.end()


def test_where_nothing_can_be_seen_the_lease_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    life = Life(f"{tmp_path}/a.db")

    def refuse(*_: object) -> int:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(os, "open", refuse)
    assert life.is_alive("somebody")
    monkeypatch.undo()
    assert not life.is_alive("somebody")
    life.end()
