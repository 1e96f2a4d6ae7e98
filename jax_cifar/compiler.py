"""Compiled programs are kept on disk, so that the second start of an experiment compiles nothing."""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax

from jax_cifar.config import Config
from jax_cifar.data.cache import user_cache_dir


@contextlib.contextmanager
def compilation_cache(config: Config) -> Iterator[None]:
    """Keep compiled programs in the user's cache folder while inside, unless the user has chosen another or none."""
    settings: dict[str, Any] = {}
    if config.train.compilation_cache and not getattr(jax.config, "jax_compilation_cache_dir", None):
        settings = {
            "jax_compilation_cache_dir": str(user_cache_dir() / "xla"),
            "jax_persistent_cache_min_compile_time_secs": 0.5,
        }
    before = {name: getattr(jax.config, name) for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
