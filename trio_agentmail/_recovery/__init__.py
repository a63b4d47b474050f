"""Mail that was missed, found through the REST API.

The supervisor deals with `recoverer`. It has two parts that look for mail: `gaps` closes gaps, `sweeps` finds what was
missed otherwise. What they share, and what the consumer is told, is in `situation`. `source` says what a look is.
`listing` is the source there is. It lists mail, by inbox or by thread (`threads`), page by page (`pages`), looks at
held mail again (`held`), and tells which was missed (`mails`). `progress` is how far all that has come, and how a
journal keeps it. `rest` asks AgentMail.
"""
