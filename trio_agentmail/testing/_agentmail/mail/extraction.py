"""What is new in a mail: its text and HTML without the history that it quotes.

AgentMail finds it by means that it does not tell. The rule here is our own, and simple: a mail is new down to the first
thing by which mail programs begin what they quote. It is linear in the size of the mail, whatever stands in it.
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
"""What a tag has with which the history of a mail begins."""


def extract_text(text: str | None) -> str | None:
    """The part above the history, without lines at its end that are quoted (`>`) and a "Sent from my …".

    All of it, if nothing stands above the history: who answers below it has what is new there.
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
    """The part above the history, whose tags are not closed. All of it, if nothing can be seen above the history."""
    if html is None:
        return None
    history = next((tag for tag in TAG.finditer(html) if QUOTES.search(tag[0])), None)
    new = html if history is None else html[: history.start()].strip()
    return new if re.sub("<[^<>]*>", "", new).strip() else html.strip()
