"""How fast the stream is, and what it costs, side by side with others: `python -m tests.benchmarks`. By hand only."""
