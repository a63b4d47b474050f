"""Addresses in messages: `user@example.com` or `Name <user@example.com>`."""

import re

__all__ = ["bare_address", "is_address"]

BARE_ADDRESS = re.compile(r"[^<>@\s,;\"\x00-\x1f\x7f]+@[^<>@\s,;\"\x00-\x1f\x7f]+")


def bare_address(address: str) -> str:
    """Return the address in lower case and without the name. The result for any other text is unspecified."""
    return address.rstrip(" >").rpartition("<")[2].lower()


def is_address(address: str) -> bool:
    """Return whether mail can be sent to this text, which may be arbitrary, since it comes from a mail."""
    return BARE_ADDRESS.fullmatch(bare_address(address)) is not None
