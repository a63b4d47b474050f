"""Mail as it is kept: messages and threads, how they are read from RFC 5322 and written as that, and their order.

`store.py` is where to begin.
"""
