"""Events are stored until they are handled.

What a stream needs of any journal is in `protocol`. What journals have in common is in two parts:

- `lifecycle` decides, without I/O: which events are new, which is delivered next (`delivery_order`), what is a suspect,
  when a failed event is redelivered, and when it is a dead letter. `content_cache` bounds what is in memory (`entry`).
- `store` is what it asks of an engine: a transaction of changes, and reading them back.

`open_journal` runs one against the other, with many changes in one transaction (`group_commit`), and `stored_journal`
has the public methods.

SQLite is one engine. `sqlite_journal` has the class that users see; `sqlite_store` writes and `sqlite_rows` reads the
tables of `sqlite_schema`, in a file that `sqlite_file` opens, `file_lock` locks, `file_watch` watches, and `read_only`
reads while an agent has it open. Another engine needs a `Store` and a subclass of `StoredJournal`.
"""
