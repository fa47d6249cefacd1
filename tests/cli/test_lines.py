from __future__ import annotations

import asyncio
import os
import random
import tracemalloc
from itertools import pairwise

import pytest

from tidemill.cli.lines import CHUNK, MAX_LINE, LineSplitter, TooLong, read_chunks


def split(data: bytes, *cuts: int) -> list[tuple[int, bytes | int]]:
    splitter = LineSplitter()
    places = [0, *sorted(cuts), len(data)]
    found = [one for a, b in pairwise(places) for one in splitter.feed(data[a:b])]
    found += splitter.end()
    return [(number, line.size if isinstance(line, TooLong) else line) for number, line in found]


def test_empty_lines_count_and_are_left_out() -> None:
    assert split(b"a\n\n  \r\nb\r\n c ") == [(1, b"a"), (4, b"b"), (5, b"c")]
    assert split(b"") == []
    assert split(b"\n\n") == []


def test_a_byte_order_mark_is_no_part_of_the_first_line() -> None:
    assert split(b"\xef\xbb\xbfa\nb", 1, 2) == [(1, b"a"), (2, b"b")]


def test_where_chunks_end_makes_no_difference() -> None:
    seed = random.randrange(10**9)
    print(f"seed {seed}")
    rng = random.Random(seed)
    for _ in range(200):
        data = bytes(rng.choice(b"ab \r\n\n") for _ in range(rng.randrange(40)))
        cuts = [rng.randrange(len(data) + 1) for _ in range(rng.randrange(6))]
        assert split(data, *cuts) == split(data), (data, cuts)
        expected = [(at, line.strip()) for at, line in enumerate(data.split(b"\n"), 1) if line.strip()]
        assert split(data, *cuts) == expected, (data, cuts)


@pytest.mark.parametrize("size", [MAX_LINE - 1, MAX_LINE, MAX_LINE + 1, 3 * MAX_LINE])
@pytest.mark.parametrize("end", [b"\n", b"\nafter\n"])
def test_only_lines_above_the_limit_are_refused(size: int, end: bytes) -> None:
    line = b"x" * size
    first = size if size > MAX_LINE else line
    expected: list[tuple[int, bytes | int]] = [(1, first)]
    if end != b"\n":
        expected.append((2, b"after"))
    cuts = range(0, size, CHUNK)
    assert split(line + end, *cuts) == expected
    assert split(line + end) == expected


def test_a_long_line_without_an_end_is_refused_and_not_kept() -> None:
    splitter = LineSplitter()
    chunk = b"x" * CHUNK
    tracemalloc.start()
    try:
        for _ in range(4 * MAX_LINE // CHUNK):
            assert not list(splitter.feed(bytes(bytearray(chunk))))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < MAX_LINE + 3 * CHUNK
    [(number, line)] = splitter.end()
    assert number == 1
    assert isinstance(line, TooLong)
    assert line.size == 4 * MAX_LINE


def test_what_a_pipe_has_is_read_at_once_though_it_stays_open() -> None:
    async def scenario() -> None:
        reading, writing = os.pipe()
        with open(reading, "rb", buffering=0) as stream:
            chunks = read_chunks(stream)
            os.write(writing, b"one\n")
            assert await asyncio.wait_for(anext(chunks), 10) == b"one\n"
            os.write(writing, b"two")
            os.close(writing)
            assert [chunk async for chunk in chunks] == [b"two"]

    asyncio.run(scenario())


def test_an_error_of_the_stream_is_raised() -> None:
    class Broken:
        def read(self, size: int, /) -> bytes:
            raise OSError("gone")

    async def scenario() -> None:
        with pytest.raises(OSError, match="gone"):
            await anext(read_chunks(Broken()))

    asyncio.run(scenario())
