"""Extracts the new part of a mail: its text and HTML without the earlier mails that it quotes.

AgentMail does not document how it extracts the new part. The rule here is our own: the new part ends where the history
begins, at the first line or tag with which mail programs introduce a quoted mail. For any content, the time is linear
in the size of the mail.
"""

import re

__all__ = ["extract_html", "extract_text"]

HISTORY = re.compile(
    r"""
    ^[ ]?On\b.*(?:\n.+){0,2}?\bwrote:[ \t]*$        # over up to three lines
    | ^-{3,}[ ]?(?:Original|Forwarded)[ ][Mm]essage[ ]?-{3,}
    | ^(?:_{5,}[ \t]*\n)?\*?From:.*\n\*?(?:Sent|Date):   # as Outlook begins it
    """,
    re.MULTILINE | re.VERBOSE,
)

SIGNATURE = re.compile(r"Sent from my [\w ]+\.?")

TAG = re.compile("<(blockquote|div|hr)[^<>]*>", re.IGNORECASE)
QUOTES = re.compile(
    "^<blockquote|gmail_quote|yahoo_quoted|moz-cite-prefix|protonmail_quote|appendonsend|divRplyFwdMsg", re.IGNORECASE
)
"""A match in a tag means that the history of the mail begins there."""


def extract_text(text: str | None) -> str | None:
    """Return the text above the history, without quoted lines (`>`) and "Sent from my …" at its end.

    If no text is above the history, the reply is below or within it, and the whole text is returned.
    """
    if text is None:
        return None
    text = text.replace("\r\n", "\n")
    history = HISTORY.search(text)
    lines = (text if history is None else text[: history.start()]).split("\n")
    while lines and (not lines[-1].strip() or lines[-1].startswith(">") or SIGNATURE.fullmatch(lines[-1].strip())):
        lines.pop()
    return "\n".join(lines).strip() or text.strip()


def extract_html(html: str | None) -> str | None:
    """Return the HTML above the history, or the whole HTML if no text is above the history. Tags may stay open."""
    if html is None:
        return None
    history = next((tag for tag in TAG.finditer(html) if QUOTES.search(tag[0])), None)
    new = html if history is None else html[: history.start()].strip()
    return new if re.sub("<[^<>]*>", "", new).strip() else html.strip()
