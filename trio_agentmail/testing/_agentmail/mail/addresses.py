"""Addresses as messages have them: `user@example.com` or `Name <user@example.com>`."""

import re

__all__ = ["bare_address", "is_address"]

BARE_ADDRESS = re.compile(r"[^<>@\s,;\"\x00-\x1f\x7f]+@[^<>@\s,;\"\x00-\x1f\x7f]+")


def bare_address(address: str) -> str:
    """Return the address without a name and in lower case. What is no address gives some text that is none either."""
    return address.rstrip(" >").rpartition("<")[2].lower()


def is_address(address: str) -> bool:
    """Return whether mail can be sent to an address that came in a mail and so may be any text."""
    return BARE_ADDRESS.fullmatch(bare_address(address)) is not None
