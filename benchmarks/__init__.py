"""Side by side with PyTorch, in one run: the suites of `scripts/benchmark.py`."""
