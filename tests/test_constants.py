"""Images are handed to programs as arguments: none is a constant of one, which jaxlib 0.7 on a CPU folds wrongly.

In all tests of this folder JAX looks for large constants (`fixtures`), so in all of training; here for one image.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_runs import Perceptron, untrained_run

from jax_cifar.augment import HorizontalFlip, RandomCrop, TrivialAugmentWide
from jax_cifar.data import Dataset
from jax_cifar.evaluation.capture import capture
from jax_cifar.evaluation.exact import in_float64
from jax_cifar.evaluation.layers import activations
from jax_cifar.lab.pictures import augmentation_rows
from jax_cifar.training.gradient_flow import gradient_flow

WEIGHTS = 10_000  # bytes: more than those of `Perceptron`, fewer than an image as float32 has
IMAGES = np.random.default_rng(0).integers(0, 256, (21, 32, 32, 3), np.uint8)


@pytest.fixture
def run(tmp_path):
    return untrained_run(tmp_path, model=Perceptron(), train={"batch_size": 20})


@pytest.fixture(autouse=True)
def smaller():
    """Constants larger than the weights are refused."""
    before = jax.config.jax_captured_constants_warn_bytes  # pyright: ignore[reportAttributeAccessIssue]
    jax.config.update("jax_captured_constants_warn_bytes", WEIGHTS)
    yield
    jax.config.update("jax_captured_constants_warn_bytes", before)


def test_a_constant_as_large_as_an_image_is_refused():
    image = jnp.ones((32, 32, 3))
    with pytest.raises(UserWarning, match="large amount of constants"):
        jax.jit(lambda: 2 * image)()
    jax.jit(lambda image: 2 * image)(image)


USES = {
    "predict": lambda run: run.logits(IMAGES, "mirror-translate"),
    "capture": lambda run: capture(run, IMAGES),
    "activations": lambda run: activations(run.network, run.variables, IMAGES, ["body"]),
    "gradient flow": lambda run: gradient_flow(
        run.config, run.network, run.variables, Dataset(IMAGES, np.zeros(21, np.int32))
    ),
    "float64": lambda run: in_float64(run.network, run.variables, IMAGES),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_no_program_has_an_image_in_it(use, run):
    use(run)


@pytest.mark.slow
def test_a_picture_of_augmentation_has_no_image_in_its_programs(run):
    augment = (TrivialAugmentWide(), RandomCrop(padding=2), HorizontalFlip())
    augmentation_rows(dataclasses.replace(run.config, augment=augment), IMAGES[:2], columns=2)
