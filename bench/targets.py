# SPDX-License-Identifier: Apache-2.0
# Copyright The Tidemill authors
"""What is compared with what, and what the project wants to hold; without a bound, for information."""

from __future__ import annotations

from . import cases_dispatch as dispatch
from . import cases_memory as memory
from . import cases_sqlite as sqlite
from . import cases_trouble as trouble
from .measure import Comparison

COMPARISONS = [
    Comparison(memory.END_TO_END, "events/s", memory.LIMIT, at_least=0.5),
    Comparison("memory publish, one after the other", "events/s", memory.PUBLISH_LIMIT),
    Comparison("memory publish_many", "events/s", memory.PUBLISH_LIMIT),
    Comparison("memory consume", "events/s", memory.CONSUME_LIMIT),
    Comparison(memory.KEYED, "events/s", memory.LIMIT),
    Comparison(memory.ALL_POLICIES, "events/s", memory.END_TO_END, at_least=0.6),
    Comparison(memory.ALL_POLICIES, "events/s", memory.KEYED),
    Comparison(dispatch.TIDEMILL, "µs/event", at_most=10),
    Comparison(dispatch.TIDEMILL, "µs/event", dispatch.FASTSTREAM),
    Comparison(sqlite.PUBLISH_1000, "events/s", sqlite.APPEND_LIMIT, at_least=0.5),
    Comparison(sqlite.PUBLISH_MANY, "events/s", sqlite.APPEND_LIMIT),
    Comparison(sqlite.PUBLISH_ONE, "events/s", sqlite.APPEND_ONE_LIMIT),
    Comparison(sqlite.CONSUME_OTHER, "events/s", sqlite.READ_LIMIT, at_least=0.25),
    Comparison(sqlite.CONSUME_OTHER, "events/s", sqlite.READ_MORE_LIMIT),
    Comparison(sqlite.CONSUME_SAME, "events/s", sqlite.READ_LIMIT),
    Comparison(sqlite.ALL_POLICIES, "events/s", sqlite.CONSUME_OTHER, at_least=0.6),
    Comparison(sqlite.ALL_POLICIES, "events/s", sqlite.CONSUME_KEYED),
    Comparison(sqlite.IDLE, "% of a core", at_most=1),
    Comparison(sqlite.IDLE, "p50 ms", at_most=10),
    Comparison(sqlite.MILLION, "RSS growth MiB", at_most=64),
    Comparison(sqlite.MILLION, "last/first 100k", at_most=1.3),
    # At most half as long again.
    Comparison(trouble.ONE_FAILS, "p99 ms", trouble.CALM, at_least=0.67),
    Comparison(trouble.PUBLISH_PENDING, "events/s", sqlite.PUBLISH_MANY, at_least=0.83),
    Comparison(trouble.CONSUME_PENDING, "µs/event", sqlite.CONSUME_OTHER, at_least=0.83),
    Comparison(trouble.IDLE_PENDING, "% of a core", at_most=1),
    Comparison(trouble.IDLE_PENDING, "opening ms", sqlite.IDLE),
    Comparison(trouble.DUE, "p99 ms", at_most=50),
    Comparison(trouble.RETRIED, "p99 ms", at_most=50),
    Comparison(trouble.DRAIN, "rest ms", at_most=1000),
]
