"""The fake as a program: `trio-agentmail emulate`, and the orders that it takes.

`emulator.py` is where to begin.
"""
