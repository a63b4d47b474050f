"""The permissions of API keys.

With a typo in a permission, or a string in place of a collection of them, a test of a key that may do little would
pass, since that key may do less than is thought. So both are errors.
"""

from collections.abc import Collection, Mapping
from typing import TypeAlias

__all__ = ["PERMISSIONS", "PERMISSION_TO_READ", "ApiKeys", "check_api_keys", "check_permissions"]

ApiKeys: TypeAlias = Collection[str] | Mapping[str, Collection[str] | None] | None
"""The keys that are known, with or without what each may do; `None`: any."""

PERMISSION_TO_READ = {
    "spam": "label_spam_read",
    "blocked": "label_blocked_read",
    "unauthenticated": "label_unauthenticated_read",
    "trash": "label_trash_read",
}
"""The labels of what a listing leaves out unless it is asked for, and the permission that this takes.

A thread has the labels of all its messages, and is left out by the same rule. (Source for all of this: AgentMail's
documentation of labels.)
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
"""All that AgentMail documents. (Source: `ApiKeyPermissions` of its API definition.)"""


def check_permissions(permissions: Collection[str] | None) -> None:
    """
    Raises:
        TypeError: they are no collection of names.
        ValueError: AgentMail has no permission of that name.
    """
    if isinstance(permissions, str | Mapping):
        raise TypeError(
            f"permissions is a collection of those that are granted, like {{'message_read'}}, "
            f"not a {type(permissions).__name__}"
        )
    unknown = sorted(set(permissions or ()) - set(PERMISSIONS))
    if unknown:
        raise ValueError(f"AgentMail has no permission {', '.join(unknown)}; it has {', '.join(PERMISSIONS)}")


def check_api_keys(api_keys: ApiKeys) -> None:
    """
    Raises:
        TypeError: they are one string, and no collection of keys; or as `check_permissions` has it.
        ValueError: as `check_permissions` has it.
    """
    if isinstance(api_keys, str):
        raise TypeError("api_keys is a collection of keys, like {'am_key'}, not a str")
    if isinstance(api_keys, Mapping):
        for permissions in api_keys.values():
            check_permissions(permissions)
