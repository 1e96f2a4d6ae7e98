"""While the tests run, a wrong shape is refused wherever a function names one, in every room."""

import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from jax_cifar.evaluation.predict import tta_views
from jax_cifar.lab.pictures import filter_panels
from jax_cifar.training.losses import cross_entropy


@pytest.mark.parametrize(
    "call",
    [
        lambda: cross_entropy(jnp.zeros((3, 4)), jnp.zeros(2, jnp.int32)),
        lambda: tta_views(jnp.zeros((3, 4), jnp.uint8), "none"),
        lambda: filter_panels(np.zeros((4, 4), np.uint8)),
    ],
    ids=["training", "evaluation", "lab"],
)
def test_a_wrong_shape_is_refused(call):
    with pytest.raises(jaxtyping.TypeCheckError):
        call()
