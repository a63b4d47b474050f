"""The protocol `Journal`, for journals on other storage engines, and the types in its signatures."""

from ._journal.protocol import Journal, Kept, KeptIdentity, RunSync

__all__ = ["Journal", "Kept", "KeptIdentity", "RunSync"]
