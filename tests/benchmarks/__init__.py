"""Benchmarks of the stream beside other clients. Run them by hand: `python -m tests.benchmarks`."""
