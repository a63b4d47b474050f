"""The fake as a program: `trio-agentmail emulate`, and the commands that its control API takes.

Begin with `emulator.py` and `server.py`.
"""
