"""AgentMail's mail, inboxes, threads, permissions and REST API, without a network or a clock.

The modules here do not import Trio, sockets, or an HTTP library. Each operation takes the present time as `now` and
returns the events that it causes, which the caller pushes. Start reading in `agentmail.py`.
"""
