"""The API keys that AgentMail knows, and their permissions."""

from collections.abc import Collection, Mapping
from typing import Any, TypeAlias

import attrs

from .permissions import check_permissions
from .refusals import Refusal, missing_key, powerless_key, unknown_key

__all__ = ["ApiKeys", "KeyRing", "bearer"]

ApiKeys: TypeAlias = Collection[str] | Mapping[str, Collection[str] | None] | None
"""The known keys, as a collection or as a mapping to their permissions. `None` means that any key is accepted."""


def _check_api_keys(_keys: "KeyRing", _attribute: "attrs.Attribute[Any]", api_keys: ApiKeys) -> None:
    if isinstance(api_keys, str):
        raise TypeError("api_keys is a collection of keys, like {'am_key'}, not a str")
    if isinstance(api_keys, Mapping):
        for permissions in api_keys.values():
            check_permissions(permissions)


def _check_permissions(
    _keys: "KeyRing", _attribute: "attrs.Attribute[Any]", permissions: Collection[str] | None
) -> None:
    check_permissions(permissions)


@attrs.define(eq=False)
class KeyRing:
    """The known API keys and their permissions. Both attributes are checked whenever they are set.

    Attributes:
        api_keys: The known keys; see `ApiKeys`. Not in the repr.
        permissions: The permissions of keys for which `api_keys` gives none. `None` means all.

    Raises:
        TypeError: An attribute is a string instead of a collection.
        ValueError: AgentMail has no such permission.
    """

    api_keys: ApiKeys = attrs.field(default=None, validator=_check_api_keys, repr=False)
    permissions: Collection[str] | None = attrs.field(default=None, validator=_check_permissions)

    def permissions_of(self, key: str) -> Collection[str] | None:
        """Return the permissions of a key, or `None` if it has all of them."""
        return self.api_keys.get(key, self.permissions) if isinstance(self.api_keys, Mapping) else self.permissions

    def refusal(self, key: str) -> Refusal | None:
        """Return the 401 for a key that is unknown or missing (`""`), or `None` if the key is known."""
        if not key:
            return missing_key()
        if self.api_keys is not None and key not in self.api_keys:
            return unknown_key()
        return None

    def websocket_refusal(self, key: str) -> Refusal | None:
        """Return the 401 or 403 that rejects a handshake, or `None` if the key may open a WebSocket."""
        if (refusal := self.refusal(key)) is not None:
            return refusal
        permissions = self.permissions_of(key)
        return powerless_key() if permissions is not None and not permissions else None


def bearer(authorization: str) -> str:
    """Return the API key in an `Authorization` header, or `""` if there is none."""
    key = authorization.removeprefix("Bearer ")  # case-sensitive, as AgentMail documents
    return "" if key == authorization or key.split() != [key] else key
