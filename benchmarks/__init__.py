"""How fast coldstore is, and how much memory it takes, beside the tools that people would use otherwise. `python -m benchmarks`."""
