"""Numbers, times and foreign text as people read them in a terminal."""

from __future__ import annotations

import os
import re
import shlex

# Control characters, and the marks that reorder or hide text: a table cell must not steer the terminal.
_UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028\u2029\u202a-\u202e\u2060\u2066-\u2069\ufeff\ud800-\udfff]"
)
_SHORT = {"\n": "\\n", "\t": "\\t", "\r": "\\r"}


def escape(text: str, keep: str = "") -> str:
    """`text` with control, direction and invisible characters spelled out, except those in `keep`."""

    def spell(match: re.Match[str]) -> str:
        character = match[0]
        if character in keep:
            return character
        code = ord(character)
        return _SHORT.get(character) or (f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}")

    return _UNSAFE.sub(spell, text)


def one_line(text: str) -> str:
    """`text` on one line: white space runs become one space, everything else unsafe is escaped."""
    return escape(" ".join(text.split()))


def count(number: int, noun: str) -> str:
    """`1 document`, `2,400 documents`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def rate(value: float) -> str:
    """A rate in few characters: 0.04, 3.2, 120, 4.1k, 2.0M."""
    if value >= 1e6:
        return f"{value / 1e6:.1f}M"
    if value >= 1e4:
        return f"{value / 1e3:.0f}k"
    if value >= 1e3:
        return f"{value / 1e3:.1f}k"
    return f"{value:.0f}" if value >= 10 else f"{value:.1f}" if value >= 0.1 else f"{value:.2g}"


def duration(seconds: float) -> str:
    """A time span in its two largest units: 0.4 s, 45 s, 12 min, 3 h 20 min, 2 d 4 h."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60} min" if minutes % 60 else f"{minutes // 60} h"
    hours = round(seconds / 3600)
    return f"{hours // 24} d {hours % 24} h" if hours % 24 else f"{hours // 24} d"


def size(number: int) -> str:
    """Bytes in the unit that fits: 812 B, 1.4 MB, 3.0 TB."""
    value, unit = float(number), "B"
    for larger in ("kB", "MB", "GB", "TB", "PB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{number} B" if unit == "B" else f"{value:.1f} {unit}"


def short_path(path: str) -> str:
    """A local path relative to the current directory where that is shorter; any other URL as it is."""
    if "://" in path:
        return path
    relative = os.path.relpath(path)
    return relative if not relative.startswith("..") else path


def shell_word(text: str) -> str:
    """`text` quoted for a shell where it needs to be."""
    return shlex.quote(text)
