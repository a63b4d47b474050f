"""Recovery: finds mail that was missed, through the REST API.

The path of a missed mail:

1. The supervisor tells the `recoverer` that the connection was lost, or that the subscription is in force again.
2. `gaps` or `sweeps` decides that a target (an inbox, a pod, or a whole key; see `source`) is due, and starts a scan
   of it. `gaps` closes the gap that a lost connection left. `sweeps` scans periodically, for mail that was missed
   otherwise.
3. `listing` runs the scan: `pages` goes through the listing page by page, of an inbox's messages or, by `threads`, of
   the threads of a pod or key. `mails` decides which of the listed mails were missed, and fetches them whole;
   `in_order` fetches several at once and hands them over in order. `held` checks mail that is held for a security
   review, and hands it over once it is released.
4. `state` puts the mail into the outbox, the same one that pushed events go through, and reports `CaughtUp` or
   `RecoveryFailed` to the consumer.

Below them, `rest` makes requests, with retries and limits; `paging` follows page tokens; and `exchange` is a single
request with its answer. `progress` records how far each target has been scanned, and how a journal keeps that. `bodies`
is apart: it fetches the bodies that pushed mail came without. `no_recovery` takes the place of `recoverer` if recovery
is turned off.
"""
