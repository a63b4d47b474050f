"""The faults that a test can cause. `table.py` has all of them; to add one, add a method there."""
