"""Mail that was missed, found through the REST API.

When to look is in `recoverer`; where, in `listing`; how AgentMail is asked, in `rest`.
"""
