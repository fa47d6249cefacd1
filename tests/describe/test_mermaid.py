from __future__ import annotations

import re

import pytest
from hypothesis import given, settings

from tidemill.broker import Trace
from tidemill.describe.mermaid import MAX_LABEL, SequenceDiagram, safe
from tidemill.describe.model import Application
from tidemill.describe.sequence import declared, happened

from .flows import NASTY, applications, texts, traces
from .mermaid_parser import refused


def shown(text: str) -> str:
    """What Mermaid shows for `text`: entities as their characters."""
    return re.sub(r"#(\d+);", lambda found: chr(int(found[1])), text)


def test_plain_names_stay_as_they_are() -> None:
    assert safe("payment.confirmed v2, attempt 1 (of 8)") == "payment.confirmed v2, attempt 1 (of 8)"


@pytest.mark.parametrize(
    ("text", "safely"),
    [
        ("a;b", "a#59;b"),
        ("#", "#35;"),
        ("a: b", "a#58; b"),
        ("<b>", "#60;b#62;"),
        ("%%{init}", "#37;#37;#123;init#125;"),
        ('say "x"', "say #34;x#34;"),
        ("one\ntwo\r\n\tthree", "one two three"),
        ("é", "#233;"),
        ("🔑", "#128273;"),
        ("\x00\ud800\u202e", "???"),
        ("", "(empty)"),
        (" \n ", "(empty)"),
    ],
)
def test_what_mermaid_could_trip_on_is_an_entity(text: str, safely: str) -> None:
    assert safe(text) == safely


@given(texts)
def test_safe_text_is_ascii_on_one_line_and_shows_what_it_was(text: str) -> None:
    found = safe(text)
    assert found.isascii()
    assert found.isprintable()
    assert not set(re.sub(r"#\d+;", "", found)) & set(';#:%<>{}@"\\`$&|\n')
    line = " ".join(text.split()) or "(empty)"
    if len(line) <= MAX_LABEL:
        assert shown(found) == "".join(char if char.isprintable() else "?" for char in line)
    else:
        assert len(shown(found)) == MAX_LABEL
        assert shown(found).endswith("…")


def test_ids_of_participants_come_from_their_names() -> None:
    diagram = SequenceDiagram()
    assert diagram.participant("service", "mail") == "service_mail"
    assert diagram.participant("topic", "mail") == "topic_mail"
    assert diagram.participant("service", "end") == "service_end"
    assert diagram.participant("service", "a.b") == "service_a_b"
    assert diagram.participant("service", "a-b") == "service_a_b_2"
    assert diagram.participant("service", "a_b") == "service_a_b_3"
    assert diagram.participant("service", "a-b") == "service_a_b_2"
    assert diagram.participant("service", "ключ") == "service_"
    assert len(diagram.participant("service", "x" * 1000)) < 60
    assert len({line.split()[1] for line in diagram.text().splitlines() if "participant" in line}) == 8


@given(texts, texts)
def test_two_names_never_share_an_id(one: str, other: str) -> None:
    diagram = SequenceDiagram()
    assert (diagram.participant("service", one) == diagram.participant("service", other)) == (one == other)


def test_the_real_parser_refuses_what_is_not_escaped() -> None:
    """Or the tests below could not fail."""
    diagram = SequenceDiagram()
    one = diagram.participant("service", "a")
    diagram.arrow(one, "->>", one, "x")
    good = diagram.text()
    wrong = [
        good.replace("as a", "as a\n  end"),
        good.replace(": x", "; end; x"),
        "flowchart LR\n  a --> b\n",
        "",
    ]
    assert list(refused([good, *wrong])) == wrong


def test_every_nasty_name_is_taken_by_the_real_parser_everywhere() -> None:
    def diagram(name: str) -> str:
        made = SequenceDiagram()
        one, other = made.participant("service", name), made.participant("topic", name)
        made.arrow(one, "->>", other, name)
        made.arrow(other, "--x", one, name)
        made.arrow(other, "-->>", other, name)
        made.note(one, name, name)
        return made.text()

    assert refused([diagram(name) for name in NASTY]) == {}


def test_random_traces_and_applications_are_taken_by_the_real_parser() -> None:
    """Hypothesis makes them; the parser, which takes a second to start, reads all of them at once."""
    drawn: list[str] = []

    @settings(max_examples=250)
    @given(traces)
    def draw_traces(trace: Trace) -> None:
        text = happened(trace)
        assert text == happened(trace), "drawn twice the same"
        drawn.append(text)

    @settings(max_examples=150)
    @given(applications)
    def draw_applications(application: Application) -> None:
        text = declared(application)
        assert text == declared(application)
        drawn.append(text)

    draw_traces()
    draw_applications()
    assert len(drawn) >= 400
    found = refused(drawn)
    shortest = min(found, key=len, default="")
    assert not found, f"{len(found)} of {len(drawn)} refused. {found[shortest]}\n{shortest}"
