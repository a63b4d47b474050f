"""Labels and label changes in requests."""

from collections.abc import Sequence
from typing import Any

import attrs

from trio_agentmail.testing._agentmail.mail.events import HELD
from trio_agentmail.testing._agentmail.refusals import invalid

from .body import texts

__all__ = ["LabelChange", "read_label_change", "read_labels"]

SYSTEM_LABELS = frozenset(
    {"received", "sent", "delivered", "bounced", "complained", "delayed", "rejected", "opened", HELD}
)
"""Labels that only AgentMail sets. A client can neither add nor remove them.

(Source: AgentMail's documentation of labels, except for the last label, which a release removes.)
"""


@attrs.frozen
class LabelChange:
    """A change of labels."""

    add: tuple[str, ...]
    remove: tuple[str, ...]

    def of(self, labels: Sequence[str]) -> tuple[str, ...]:
        """Return the labels after the change. A label that is both added and removed is removed."""
        return tuple(label for label in dict.fromkeys((*labels, *self.add)) if label not in self.remove)


def read_labels(body: dict[str, Any], name: str) -> tuple[str, ...]:
    """Read labels, which AgentMail converts to lower case.

    Raises:
        Refusal: A label is invalid, or one of `SYSTEM_LABELS`.
    """
    labels = tuple(label.lower() for label in texts(body, name))
    if not SYSTEM_LABELS.isdisjoint(labels) or "" in labels:
        raise invalid(name, "labels other than those that only AgentMail sets")
    return labels


def read_label_change(body: dict[str, Any]) -> LabelChange:
    """Read a change of labels.

    Raises:
        Refusal: A label is invalid, or the request has neither `add_labels` nor `remove_labels`.
    """
    if body.keys().isdisjoint({"add_labels", "remove_labels"}):
        raise invalid("add_labels", "given, or else remove_labels")
    return LabelChange(read_labels(body, "add_labels"), read_labels(body, "remove_labels"))
