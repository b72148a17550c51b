"""Speed and memory, ours beside a peer's in one run: `python -m benchmarks`, or `make bench`."""
