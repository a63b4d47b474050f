"""The network side of the fake: WebSockets and HTTP, in memory and on ports.

`websockets.py` and `http.py` are the two services, and `ports.py` serves them on TCP ports. `hooks.py` defines the
faults that they apply to each connection, push and request.
"""
