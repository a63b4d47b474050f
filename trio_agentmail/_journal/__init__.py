"""Journals store events until they are handled.

`protocol` defines what a stream needs of a journal. The engine-independent implementation has two parts:

- `lifecycle` decides, without I/O, which events are new, which one is delivered next (`delivery_order`), which are
  suspects, when a failed event is redelivered, and when it becomes a dead letter. `content_cache` limits how much of
  the pending events (`entry`) is in memory.
- `store` is the protocol of a storage engine: it applies changes in a transaction and reads records back.

`open_journal` runs the lifecycle against a store. `group_commit` writes many changes in one transaction.
`stored_journal` has the public methods.

SQLite is one engine. `sqlite_journal` has the public class. `sqlite_store` writes and `sqlite_rows` reads the tables of
`sqlite_schema`. `sqlite_file` opens the file, `file_lock` locks it, `file_watch` watches it, and `read_only` reads it
while an agent has it open. Another engine needs a `Store` and a subclass of `StoredJournal`.
"""
