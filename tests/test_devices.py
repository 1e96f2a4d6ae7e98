"""Four simulated devices compute what one computes; all in one process, which has them from its start."""

import dataclasses
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from small_runs import Perceptron, a_lot, largest_difference, loop, outline, small_config

from jax_cifar.augment import HorizontalFlip, RandomCrop
from jax_cifar.evaluation.predict import make_batches, predict_logits
from jax_cifar.training.many import choose_way, train_many


def one_run(devices: int) -> loop.TrainResult:
    """Four steps of a run with averaging, mixing and augmentation; 500 test images in batches of 249."""
    config = small_config(
        optim={"ema_decay": 0.9},
        mix={"mixup_alpha": 1.0},
        train={"steps": 4},
        eval={"batch_size": 249},
        distributed={"devices": devices},
    )
    config = dataclasses.replace(config, augment=(RandomCrop(padding=2), HorizontalFlip()))
    with tempfile.TemporaryDirectory() as folder:
        return loop.train(config, folder)


def prediction() -> dict[str, Any]:
    """21 images in batches of 6, by a network that gives two of its pixels."""
    sharding = NamedSharding(Mesh(np.array(jax.devices()), ("batch",)), PartitionSpec("batch"))
    seen = []

    def predict(variables, images):
        seen.append((images.shape[0], len(images.sharding.device_set)))
        return images[:, 0, 0, :2].astype(jnp.float32)

    images = np.random.default_rng(0).integers(0, 256, (21, 2, 2, 3), dtype=np.uint8)
    logits = predict_logits(predict, None, make_batches(images, 6, sharding))
    return {"seen": seen, "in_order": bool(np.array_equal(logits, images[:, 0, 0, :2]))}


def report() -> None:
    """What the process with four devices prints."""
    one, four = one_run(1), one_run(4)
    members = a_lot(model=Perceptron(), distributed={"devices": 2})
    values = {
        "difference": largest_difference(one.state, four.state),
        "devices": len(jax.tree.leaves(four.state.params)[0].sharding.device_set),
        "counts": [one.report.count, four.report.count],
        "ways": [choose_way(members[0], 3), choose_way(members[0], 1)],
        "members": [outline(result) for result in train_many(members)],
        "prediction": prediction(),
    }
    print("\n" + json.dumps(values))


@pytest.fixture(scope="module")
def reported() -> dict[str, Any]:
    code = "import sys; sys.path[:0] = sys.argv[1:]; import strictness, test_devices; test_devices.report()"
    tests = Path(__file__).parent
    options = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in options.items():
            patch.setenv(name, value)
        done = subprocess.run(
            [sys.executable, "-c", code, str(tests), str(tests.parent)], capture_output=True, text=True, timeout=300
        )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_a_run_is_the_same(reported):
    assert reported["devices"] == 4
    assert reported["difference"] < 1e-4
    assert reported["counts"] == [500, 500]


def test_each_device_trains_a_member_of_its_own(reported):
    assert reported["ways"] == ["devices", "sequential"]
    alone = [outline(result) for result in train_many(a_lot(model=Perceptron()), how="sequential")]
    np.testing.assert_allclose(reported["members"], alone, atol=1e-4)


def test_batches_are_spread_though_devices_divide_neither_set_nor_batch(reported):
    assert reported["prediction"] == {"seen": [[8, 4]] * 3, "in_order": True}
