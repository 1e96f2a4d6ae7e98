"""How the programs of a run are compiled: the options, and the cache that spares the second start all compiling."""

import contextlib
import functools
import os
from collections.abc import Iterator
from typing import Any

import jax

from jax_cifar.config import Config
from jax_cifar.files import user_cache_dir

# On a CPU, matrix products by Eigen: by YNNPACK, the default, those of a convolution take up to twice as long.
CPU_OPTIONS = {"xla_cpu_experimental_ynn_fusion_type": ""}


@functools.cache
def compiler_options() -> dict[str, str]:
    """XLA's options for `jax.jit` on the default backend; none where XLA_FLAGS or an older jaxlib rule them out."""
    chosen = os.environ.get("XLA_FLAGS", "")
    if jax.default_backend() != "cpu" or any(name in chosen for name in CPU_OPTIONS):
        return {}
    try:
        jax.jit(lambda: 0, compiler_options=CPU_OPTIONS).lower().compile()
    except jax.errors.JaxRuntimeError:  # an option that this jaxlib does not have
        return {}
    return CPU_OPTIONS


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
