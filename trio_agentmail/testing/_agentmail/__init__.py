"""An AgentMail without a network and without a clock: mail, inboxes, threads, permissions, and the REST API.

Nothing here imports Trio, sockets, or an HTTP library. Each operation takes the present time as `now` and returns the
events that it causes, which the caller pushes. `agentmail.py` is where to begin.
"""
