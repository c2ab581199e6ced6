"""Text of the user's, and of files nobody vouches for, made safe to print."""

from __future__ import annotations


def visible(text: str, limit: int = 300) -> str:
    """One line without control, direction or surrogate characters; long text loses its middle.

    >>> print(visible("a\\u202eb\\n\\x1b[31m"))
    a\\u202eb \\u001b[31m
    >>> visible(400 * "x", limit=12)
    'xxxxx … xxxx'
    """
    line = " ".join(text.split())
    if len(line) > 2 * limit:  # what is cut below need not be escaped first
        line = line[:limit] + line[-limit:]
    line = "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in line)
    if len(line) <= limit:
        return line
    tail = limit // 3
    return f"{line[: limit - tail - 3]} … {line[-tail:]}"


def inline_code(text: object, limit: int = 300) -> str:
    """Text as inline code of Markdown, also inside a table.

    >>> inline_code("a`b|c")
    "`a'b¦c`"
    """
    return "`" + (visible(str(text), limit).replace("`", "'").replace("|", "¦") or " ") + "`"
