"""How clients reach the fake: WebSockets and HTTP, in memory and on ports.

`websockets.py` and `http.py` are the two services; `ports.py` has both listen on a port. `hooks.py` has the faults that
they take for each connection, push and request.
"""
