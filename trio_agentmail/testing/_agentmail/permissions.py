"""The permissions of API keys, and the labels of mail that a key may see."""

from collections.abc import Collection, Mapping

__all__ = ["PERMISSIONS", "PERMISSION_TO_READ", "check_permissions", "hidden_labels"]

PERMISSION_TO_READ = {
    "spam": "label_spam_read",
    "blocked": "label_blocked_read",
    "unauthenticated": "label_unauthenticated_read",
    "trash": "label_trash_read",
}
"""The labels of mail that listings contain only on request, with the permission that each label requires.

A thread has the labels of all its messages, so the same rule applies to threads. (Source: AgentMail's documentation of
labels.)
"""

ACTIONS = {
    "inbox": ("read", "create", "update", "delete"),
    "message": ("read", "reply", "send", "update", "delete"),
    "agent_armor": ("release",),
    "label": ("spam_read", "blocked_read", "unauthenticated_read", "trash_read"),
    "draft": ("read", "create", "update", "delete", "send"),
    "webhook": ("read", "create", "update", "delete"),
    "domain": ("read", "create", "update", "delete"),
    "list_entry": ("read", "create", "delete"),
    "metrics": ("read",),
    "api_key": ("read", "create", "update", "delete"),
    "app": ("connect", "share_owner"),
    "account": ("update",),
    "pod": ("read", "create", "update", "delete"),
    "calendar": ("read", "update"),
    "calendar_event": ("read", "create", "update", "delete"),
    "file": ("read", "create", "update", "delete"),
}

PERMISSIONS = tuple(f"{thing}_{action}" for thing, actions in ACTIONS.items() for action in actions)
"""All permissions that AgentMail documents. (Source: `ApiKeyPermissions` of its API definition.)"""


def check_permissions(permissions: Collection[str] | None) -> None:
    """Check that permissions are a collection of known names.

    Otherwise a typo would go unnoticed: a test of a key with few permissions would pass because the key has even fewer.

    Raises:
        TypeError: `permissions` is a string or a mapping.
        ValueError: AgentMail has no permission of that name.
    """
    if isinstance(permissions, str | Mapping):
        raise TypeError(
            f"permissions is a collection of the granted permissions, like {{'message_read'}}, "
            f"not a {type(permissions).__name__}"
        )
    unknown = sorted(set(permissions or ()) - set(PERMISSIONS))
    if unknown:
        raise ValueError(f"AgentMail has no permission {', '.join(unknown)}; it has {', '.join(PERMISSIONS)}")


def hidden_labels(permissions: Collection[str] | None) -> frozenset[str]:
    """Return the labels of mail that a key may not see.

    Args:
        permissions: The permissions of the key; `None` means all.
    """
    return frozenset(
        label
        for label, permission in PERMISSION_TO_READ.items()
        if permissions is not None and permission not in permissions
    )
