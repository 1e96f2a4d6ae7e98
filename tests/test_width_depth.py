"""The nets of configs/width_depth.py cost what they are said to cost, on both data sets."""

import math
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from jax_cifar.compress.cost import multiply_adds
from jax_cifar.config.files import load_config, variants_of
from jax_cifar.config.spec import InputSpec
from jax_cifar.models import create_model
from jax_cifar.models.network import Network

CONFIG = Path(__file__).parents[1] / "configs/width_depth.py"


def costs(variant: str, classes: int) -> dict[str, int]:
    """Trained numbers and multiply-adds, counted by the network's shapes."""
    config = load_config(f"{CONFIG}:{variant}")
    ((side, _),) = config.train.resolutions
    names = tuple(map(str, range(classes)))
    network = Network(create_model(config.model, classes), InputSpec((32, 32, 3), (0.5,) * 3, (0.2,) * 3, side, names))
    images = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    params = jax.eval_shape(lambda key, x: network.model.init(key, x, train=False), jax.random.key(0), images)["params"]
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
    return {"parameters": count, "multiply_adds": multiply_adds(network)}


@pytest.fixture(scope="module")
def simple_cnn() -> dict[int, dict[str, int]]:
    """What SimpleCNN costs, by the number of classes."""
    return {classes: costs("parameters_2", classes) for classes in (10, 100)}


@pytest.mark.parametrize("variant", [name for name in variants_of(CONFIG) if not name.endswith("_2")])
def test_budgets_are_equal_within_three_per_cent(variant, simple_cnn):
    budget, _, depth = variant.rpartition("_")
    other = "parameters" if budget == "multiply_adds" else "multiply_adds"
    for classes in (10, 100) if depth in "38" else (10,):
        found = costs(variant, classes)
        assert found[budget] == pytest.approx(simple_cnn[classes][budget], rel=0.03)
        assert found[other] != pytest.approx(simple_cnn[classes][other], rel=0.3)


def test_the_shallowest_is_simple_cnn_whichever_the_budget(simple_cnn):
    from jax_cifar.config import ModelConfig

    one, other = (load_config(f"{CONFIG}:{budget}_2").model for budget in ("parameters", "multiply_adds"))
    assert (one.depth, one.widths) == (other.depth, other.widths) == (2, (32, 64))
    published = create_model(ModelConfig(name="simple_cnn", norm="batch", width=32), 10)
    images = jnp.zeros((1, 16, 16, 3))
    shapes = [
        jax.eval_shape(lambda key, model=model: model.init(key, images, train=False), jax.random.key(0))
        for model in (published, create_model(one, 10))
    ]
    assert jax.tree.map(lambda leaf: leaf.shape, shapes[0]) == jax.tree.map(lambda leaf: leaf.shape, shapes[1])
