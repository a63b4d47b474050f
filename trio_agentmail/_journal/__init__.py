"""Events on disk until they are handled.

An event comes in by `SQLiteJournal.record` (`sqlite_journal`), waits in a queue (`queue`) for the next transaction
(`group_commit`), is written down (`entry`, `sqlite_store`, `sqlite_file`), and goes out by `next` when it is its turn
(`line`). What a stream asks of a journal is in `protocol`.

What others do to the file meanwhile is noticed by `file_watch`, or kept out by `file_lock`; who only looks at it uses
`read_only`.
"""
