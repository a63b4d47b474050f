"""Makes text that a server or a sender chose safe to show."""

__all__ = ["printable"]


def printable(text: str, limit: int) -> str:
    """Return untrusted text as one line without control characters, which is safe to show on a terminal.

    Args:
        limit: Maximum length in characters. Longer text is cut and ends with an ellipsis.
    """
    shown = "".join(c if c.isprintable() else " " for c in text[: limit + 1])
    return " ".join(shown.split()) if len(text) <= limit else " ".join(shown[:limit].split()) + "…"
