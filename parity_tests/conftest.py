"""Strict arithmetic for every test, and one thread for PyTorch: the test workers share the cores."""

import strictness  # noqa: F401
import torch

torch.set_num_threads(1)
