"""What a test can make go wrong with the next connections, pushes and requests."""
