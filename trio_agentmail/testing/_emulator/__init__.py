"""The program `trio-agentmail emulate`: a fake on ports, and the control API with its commands.

Start reading with `emulator.py` and `server.py`.
"""
