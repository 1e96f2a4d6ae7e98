"""The nets of configs/width_depth.py cost what they are said to cost, on both data sets."""

import math
import runpy
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from jax_cifar.compress.cost import multiply_adds
from jax_cifar.config import ModelConfig
from jax_cifar.config.files import load_config, variants_of
from jax_cifar.config.spec import InputSpec
from jax_cifar.models import create_model
from jax_cifar.models.network import Network

CONFIG = Path(__file__).parents[1] / "configs/width_depth.py"
NAMES = runpy.run_path(str(CONFIG))
SPEC = InputSpec((32, 32, 3), (0.5,) * 3, (0.2,) * 3, NAMES["SIDE"], tuple("0123456789"))


def counted(network: Network) -> dict[str, int]:
    """Trained numbers and multiply-adds, by the network's shapes."""
    images = jnp.zeros((1, NAMES["SIDE"], NAMES["SIDE"], 3))
    params = jax.eval_shape(lambda key: network.model.init(key, images, train=False), jax.random.key(0))["params"]
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
    return {"parameters": count, "multiply_adds": multiply_adds(network)}


@pytest.mark.parametrize("variant", ["parameters_3", "multiply_adds_6"])
def test_costs_are_those_of_the_network(variant):
    config = load_config(f"{CONFIG}:{variant}")
    assert config.train.resolutions == ((NAMES["SIDE"], 1.0),)
    found = counted(Network(create_model(config.model, 10), SPEC))
    assert found == NAMES["costs"](config.model.depth, config.model.widths)


@pytest.mark.parametrize("variant", [name for name in variants_of(CONFIG) if not name.endswith("_2")])
def test_budgets_are_equal_within_three_per_cent(variant):
    model, budget = load_config(f"{CONFIG}:{variant}").model, variant.rpartition("_")[0]
    assert variant.endswith(f"_{model.depth}")
    other = "parameters" if budget == "multiply_adds" else "multiply_adds"
    for classes in (10, 100):
        found, aim = NAMES["costs"](model.depth, model.widths, classes), NAMES["costs"](2, (32, 64), classes)
        assert found[budget] == pytest.approx(aim[budget], rel=0.03)
        assert found[other] != pytest.approx(aim[other], rel=0.3)


def test_the_shallowest_is_simple_cnn_whichever_the_budget():
    one, other = (load_config(f"{CONFIG}:{budget}_2").model for budget in ("parameters", "multiply_adds"))
    assert (one.depth, one.widths) == (other.depth, other.widths) == (2, (32, 64))
    simple_cnn = create_model(ModelConfig(name="simple_cnn", norm="batch", width=32), 10)
    assert counted(Network(simple_cnn, SPEC)) == NAMES["costs"](2, (32, 64))
