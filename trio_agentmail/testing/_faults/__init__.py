"""The faults that a test can ask for. `table.py` has all of them; to add one, add a method there."""
