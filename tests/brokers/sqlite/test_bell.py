"""The bell: heard by every process that has one, missed by the dead, and never waited for."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
from waiting import wait_until

from tidemill.brokers.sqlite.bell import SUFFIX, Bell
from tidemill.brokers.sqlite.live import Life


def test_every_other_bell_rings_and_one_s_own_does_not(tmp_path: Path) -> None:
    database = str(tmp_path / "events.db")

    async def main() -> None:
        heard: list[str] = []
        lives = [Life(database) for _ in range(3)]
        bells = [Bell(database) for _ in range(3)]
        for number, (life, bell) in enumerate(zip(lives, bells, strict=True)):
            assert bell.hang_up(life.token, lambda number=number: heard.append(f"bell {number}"))
        bells[0].ring()
        await wait_until(lambda: sorted(heard) == ["bell 1", "bell 2"])
        bells[2].take_down()
        bells[0].ring()
        await wait_until(lambda: heard.count("bell 1") == 2)
        assert heard.count("bell 2") == 1
        assert "bell 0" not in heard
        Bell(database).ring()  # a publisher that listens to nothing
        await wait_until(lambda: heard.count("bell 0") == 1)
        for bell in bells[:2]:
            bell.take_down()
        for life in lives:
            life.end()

    asyncio.run(main())
    assert not (tmp_path / "events.db-live").exists()


def test_ringing_waits_for_nobody_who_does_not_answer(tmp_path: Path) -> None:
    database = str(tmp_path / "events.db")

    async def main() -> None:
        life, bell, other = Life(database), Bell(database), Bell(database)
        bell.hang_up(life.token, lambda: None)
        for _ in range(100_000):  # far more than a pipe holds, and nobody reads while this loop runs
            other.ring()
        bell.take_down()
        other.ring()
        life.end()

    asyncio.run(main())


def test_a_dead_process_leaves_no_bell(tmp_path: Path) -> None:
    database = str(tmp_path / "events.db")
    folder = tmp_path / "events.db-live"
    child = os.fork()
    if child == 0:

        async def live() -> None:
            Bell(database).hang_up(Life(database).token, lambda: None)

        asyncio.run(live())
        os._exit(0)
    os.waitpid(child, 0)
    assert len(list(folder.iterdir())) == 2
    Bell(database).ring()  # finds nobody behind it, and does not mind
    life = Life(database)
    assert [path.name for path in folder.iterdir()] == [life.token]
    life.end()


def test_where_there_can_be_no_pipe_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "mkfifo", refuse)

    async def main() -> None:
        bell = Bell(str(tmp_path / "events.db"))
        assert not bell.hang_up("token", lambda: None)
        bell.ring()
        bell.take_down()

    asyncio.run(main())
    assert SUFFIX.startswith(".")
