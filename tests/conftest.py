"""Strict arithmetic for every test: no silent dtype promotion, no silent rank promotion."""

import strictness  # noqa: F401
import typecheck  # noqa: F401
from fixtures import finished_run, pytest_collection_finish, quick_compile, saved, warnings, x64  # noqa: F401
