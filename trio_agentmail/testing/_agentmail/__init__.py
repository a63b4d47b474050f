"""An AgentMail without a network and without a clock: mail, inboxes, threads, permissions, and the REST API.

Nothing here knows Trio, sockets or an HTTP library. Operations take the time as `now` and return the events that they
cause; the caller pushes these. `agentmail.py` is where to begin.
"""
