"""Mermaid's own grammar: a sequence diagram from lines, and text made safe for it.

Mermaid ends a statement at `;`, begins a comment at `#` and `%%`, reads `{`, `@`, `:` and `<` in names, takes words
such as `end` and `wrap:` for its own, and shows what looks like HTML. So every character that is not plainly
harmless is written as an entity (`#59;`), and participants go by ids made here.
"""

from __future__ import annotations

import re
from typing import Final, Literal

MAX_LABEL: Final = 120
"""Most characters of one text. What an error says is known by then, and a diagram stays readable."""

MAX_TEXT: Final = 50_000
"""Most characters Mermaid draws unless its `maxTextSize` is raised."""

_SAFE = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789 .,_-()/'=!?+*")
_FOREIGN = re.compile(r"[^A-Za-z0-9]+")

Arrow = Literal["->>", "-->>", "--x"]


class SequenceDiagram:
    """A sequence diagram that is being written. The same calls give the same text."""

    def __init__(self) -> None:
        self._participants: dict[tuple[str, str], str] = {}
        self._declared: list[str] = []
        self._lines: list[str] = []

    def participant(self, kind: str, name: str) -> str:
        """The id of a participant, which is drawn from here on. It depends on its kind and name alone, unless two
        names differ in nothing but signs."""
        found = self._participants.get((kind, name))
        if found is None:
            base = f"{kind}_{_FOREIGN.sub('_', name).strip('_')[:40]}"
            taken = {*self._participants.values()}
            found, number = base, 1
            while found in taken:
                number += 1
                found = f"{base}_{number}"
            self._participants[kind, name] = found
            label = name if kind == "service" else f"{name} ({kind})"
            self._declared.append(f"participant {found} as {safe(label)}")
        return found

    def arrow(self, start: str, arrow: Arrow, end: str, text: str) -> None:
        """Something that passes from one participant to another."""
        self._lines.append(f"{start}{arrow}{end}: {safe(text)}")

    def note(self, over: str, *lines: str) -> None:
        """A note over one participant."""
        self._lines.append(f"Note over {over}: {'<br/>'.join(map(safe, lines))}")

    def text(self) -> str:
        """The diagram, in ASCII, with a line end."""
        return "".join(
            f"{line}\n" for line in ("sequenceDiagram", *(f"    {each}" for each in self._declared + self._lines))
        )


def safe(text: str) -> str:
    """`text` on one line, cut to 120 characters, with everything that Mermaid could read otherwise as an entity."""
    text = " ".join(text.split()) or "(empty)"
    if len(text) > MAX_LABEL:
        text = text[: MAX_LABEL - 1] + "…"
    return "".join(char if char in _SAFE else _entity(char) for char in text)


def _entity(char: str) -> str:
    if not char.isprintable():  # control and format characters, lone surrogates, private use
        return "?"
    return f"#{ord(char)};"
