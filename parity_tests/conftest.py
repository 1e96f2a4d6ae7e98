"""Strict arithmetic for every test: no silent dtype promotion, no silent rank promotion."""

import jax

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
