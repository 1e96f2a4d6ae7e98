"""Strict arithmetic for every test: no silent dtype promotion, no silent rank promotion."""

import strictness  # noqa: F401
from fixtures import quick_compile, x64  # noqa: F401
