"""Strict arithmetic for every test: no silent dtype promotion, no silent rank promotion."""

import strictness  # noqa: F401
import typecheck  # noqa: F401
from fixtures import (  # noqa: F401
    clock,
    finished_run,
    images_are_arguments,
    pytest_collection_finish,
    pytest_make_collect_report,
    quick_compile,
    saved,
    warnings,
    x64,
)
