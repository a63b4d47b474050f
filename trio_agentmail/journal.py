"""The protocol `Journal`, and the types in its signatures, for journals other than `SQLiteJournal`."""

from ._journal.protocol import Journal, Kept, KeptIdentity, RunSync

__all__ = ["Journal", "Kept", "KeptIdentity", "RunSync"]
