"""What both folders of tests switch on: strict arithmetic, quick compilation and one cache of compiled programs."""

import atexit
import contextlib
import functools
import os
import shutil
import tempfile
from typing import Any

# The workers and the processes that tests start inherit it, so that no program is compiled twice.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="jax_cifar-tests-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)

# Compiling costs more than running, in the tests and in the processes that they start; see `fixtures.quick_compile`.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"

import jax

# No public name adds an option to every program; this one is the same in jax 0.7 to 0.12.
from jax._src import compiler

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# With the emitters that jaxlib had before its present ones, compiling takes a third less of the processor.
OLDER_EMITTERS = {"xla_cpu_use_fusion_emitters": False}
_options_of = compiler.get_compile_options


@functools.cache
def quicker() -> dict[str, Any]:
    """`OLDER_EMITTERS`; nothing where this jaxlib (0.12) no longer has them."""
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        jax.jit(lambda: 0, compiler_options=OLDER_EMITTERS).lower().compile()
        return OLDER_EMITTERS
    return {}


def _quick_options(*given: Any, env_options_overrides: dict[str, Any] | None = None, **named: Any) -> Any:
    """JAX's options for a program, and those of `quicker` where programs are compiled quickly."""
    own = dict(env_options_overrides or {})
    if own != OLDER_EMITTERS and jax.config.read("jax_disable_most_optimizations"):
        own.pop("xla_backend_optimization_level", None)  # none is lower
        own = quicker() | own
    return _options_of(*given, env_options_overrides=own, **named)


compiler.get_compile_options = _quick_options
