"""Mail that was missed, found through the REST API.

When to look is in `recoverer`; what a look is, in `source`. `listing` is the source there is: it lists mail, by inbox
or by thread (`threads`), looks at held mail again (`held`), and tells which was missed (`mails`). `rest` is who asks
AgentMail.
"""
