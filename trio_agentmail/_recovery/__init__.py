"""Recovery: finds mail that was missed, through the REST API.

The path of a missed mail:

1. The supervisor tells the `recoverer` that the connection was lost, or that the subscription is in force again.
2. `gaps` or `sweeps` decides that a target (an inbox, a pod, or a whole key; see `source`) is due, and starts a scan
   of it. `gaps` closes the gap that a lost connection left, and polls recent mail while there is no connection.
   `sweeps` scans periodically, for mail that was missed otherwise.
3. `listing` runs the scan. `pages` reads the listing page by page: an inbox's messages or, with `threads`, the threads
   of a pod or key. `mails` decides which of the listed mails were missed, and fetches them in full. `in_order` fetches
   several at once and hands them over in order. `held` checks mail that is held for a security review, and hands it
   over once it is released.
4. `state` puts the mail into the outbox that pushed events also go through, and reports `CaughtUp` or `RecoveryFailed`
   to the consumer.

Below them, `rest` makes requests with retries and limits, `paging` follows page tokens, and `exchange` makes a single
request and reads its answer. `progress` records how far each target has been scanned, and encodes that for a journal.
`bodies` is independent of scans: it fetches the bodies that are missing in pushed mail. `no_recovery` replaces
`recoverer` if recovery is turned off.
"""
