"""A soak: much mail, a connection that is cut all the time, a journal. `python -m tests.benchmarks.soak --help`."""
