"""Changes of labels that a client asks for."""

from collections.abc import Sequence
from typing import Any

import attrs

from trio_agentmail.testing._mail.events import HELD

from .body import texts
from .errors import invalid

__all__ = ["LabelChange", "read_label_change", "read_labels"]

SYSTEM_LABELS = frozenset(
    {"received", "sent", "delivered", "bounced", "complained", "delayed", "rejected", "opened", HELD}
)
"""Those that tell what became of a message: a client can neither add nor remove them. (Source: AgentMail's
documentation of labels, except for the last one, whose way off is a release.)
"""


@attrs.frozen
class LabelChange:
    add: tuple[str, ...]
    remove: tuple[str, ...]

    def of(self, labels: Sequence[str]) -> tuple[str, ...]:
        """The labels after the change. What is both added and removed is removed."""
        return tuple(label for label in dict.fromkeys((*labels, *self.add)) if label not in self.remove)


def read_labels(body: dict[str, Any], name: str) -> tuple[str, ...]:
    """Labels of the client's own, which AgentMail keeps in lower case.

    Raises:
        Refusal: they are none, or the system's.
    """
    labels = tuple(label.lower() for label in texts(body, name))
    if not SYSTEM_LABELS.isdisjoint(labels) or "" in labels:
        raise invalid(name, "labels, without those that only AgentMail sets")
    return labels


def read_label_change(body: dict[str, Any]) -> LabelChange:
    """
    Raises:
        Refusal: it makes no sense, or is none.
    """
    if body.keys().isdisjoint({"add_labels", "remove_labels"}):
        raise invalid("add_labels", "there, or else remove_labels")
    return LabelChange(read_labels(body, "add_labels"), read_labels(body, "remove_labels"))
