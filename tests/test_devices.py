"""Four simulated devices compute what one computes; all in one process, which has them from its start."""

import contextlib
import dataclasses
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from small_runs import Perceptron, a_lot, largest_difference, loop, outline, same_bits, small_config, with_fields

from jax_cifar import load_config
from jax_cifar.augment import HorizontalFlip, RandomCrop
from jax_cifar.backend import images as backend_images
from jax_cifar.backend import stored
from jax_cifar.backend.compiler import compilation_cache
from jax_cifar.backend.images import place_images
from jax_cifar.backend.mesh import make_mesh, replicated, split_batch
from jax_cifar.backend.portions import by_shares, map_chunks, sum_chunks
from jax_cifar.backend.precision import float64
from jax_cifar.backend.stored import Stored
from jax_cifar.data import load_data
from jax_cifar.evaluation.predict import by_portions, make_batches, make_predictor, predict_logits
from jax_cifar.ops import channels, winograd
from jax_cifar.ops.conv import conv2d
from jax_cifar.run.clock import Clock
from jax_cifar.telemetry import read_metrics
from jax_cifar.training import session, steps
from jax_cifar.training.many import choose_way, train_many
from jax_cifar.training.replicas import one_run as replicas_of
from jax_cifar.training.session import Session
from jax_cifar.training.steps import DeviceData, epoch_order


def one_run(devices: int, **sections: Any) -> loop.TrainResult:
    """Four steps of a run with averaging, mixing and augmentation; 500 test images in batches of 249."""
    config = small_config(
        **sections,
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
    taken = make_batches(images, 6, sharding).take(np.arange(20, 9, -1))
    spread = [(batch.shape[0], len(batch.sharding.device_set)) for batch in taken.images]
    right = np.array_equal(np.concatenate(taken.images)[:11], images[20:9:-1])
    in_order = bool(np.array_equal(logits, images[:, 0, 0, :2]))
    return {"seen": seen, "in_order": in_order, "taken": spread, "right": bool(right)}


def sent(program: Any) -> dict[str, int]:
    """How often a compiled program has its devices send one another what."""
    found = re.findall(r" (all-\w+|reduce-scatter|collective-\w+)(?:-start)?\(", program.as_text())
    return {name: found.count(name) for name in sorted(set(found))}


def portions() -> dict[str, Any]:
    """96 rows, 24 on each device, eight at a time of all or a portion of a prediction: doubled, summed, doubled."""
    mesh, rows = make_mesh(small_config()), np.arange(96.0 * 3, dtype=np.float32).reshape(96, 3)
    at_a_time: dict[str, set[int]] = {}  # and of all, whose shape alone is looked at

    def seen(name: str, part: jax.Array) -> jax.Array:
        at_a_time.setdefault(name, set()).add(len(part))
        return part

    ways = {
        "doubled": lambda x: map_chunks(lambda part: 2 * seen("doubled", part), x, 8),
        "summed": lambda x: sum_chunks(lambda part: seen("summed", part).sum(0), (x,), 8),
        "predicted": lambda x: by_portions(lambda part: 2 * seen("predicted", part), x),
    }
    spread = jax.device_put(rows, split_batch(mesh))
    programs = {name: jax.jit(by_shares(way, mesh)).lower(spread).compile() for name, way in ways.items()}
    found = {name: sent(program) for name, program in programs.items()}
    results = {name: np.asarray(program(spread)) for name, program in programs.items()}
    right = all(np.array_equal(results[name], 2 * rows) for name in ("doubled", "predicted"))
    right &= np.array_equal(results["summed"], rows.sum(0))
    return {"sent": found, "right": bool(right), "at_a_time": {name: min(each) for name, each in at_a_time.items()}}


def kernels(vmap: bool) -> dict[str, Any]:
    """What four devices make of a batch, in small parts, against what one makes, in float64."""
    channels.CHUNK_BYTES = winograd.CHUNK_BYTES = 1000
    mesh, draws = make_mesh(small_config()), np.random.default_rng(0)

    def layer(x, kernel):
        x = channels.batch_norm(conv2d(x, kernel, padding=((1, 1), (1, 1))), kernel[0, 0, 0], kernel[0, 0, 1], 1e-5)[0]
        return jnp.sum(jnp.sin(x))

    gradients, rows = jax.grad(layer, (0, 1)), split_batch(mesh)
    with float64():
        arrays = [jnp.asarray(draws.normal(size=shape)) for shape in ((2, 12, 4, 4, 64), (2, 3, 3, 64, 80))]
        if vmap:
            gradients, rows = jax.vmap(gradients), NamedSharding(mesh, PartitionSpec(None, "data"))
        else:
            arrays = [array[0] for array in arrays]
        spread = jax.device_put(arrays, [rows, replicated(mesh)])
        program = jax.jit(by_shares(gradients, mesh)).lower(*spread).compile()
        difference = largest_difference(jax.jit(gradients)(*arrays), program(*spread))
    return {"difference": difference, "sent": sent(program)}


def whole_step() -> dict[str, Any]:
    """What is sent by the step and the prediction of a network with every kind of convolution; compiled, never run."""
    config = small_config(model={"width": 64})
    config = dataclasses.replace(config, augment=(RandomCrop(padding=2), HorizontalFlip()))
    made = Session(config, load_data(config.data), replicas_of(config), Clock())
    state = made.start([config])
    made.trace(state)
    (calls,) = made._traced.values()
    predict: Any = make_predictor(made.network, mesh=made.replicas.mesh)
    prediction = predict.lower(state.eval_variables, made.batches("test").images[0])
    return {"step": sent(calls.traces[None].lower().compile()), "prediction": sent(prediction.compile())}


@contextlib.contextmanager
def images_in_parts() -> Iterator[None]:
    """Inside, no image lies whole on a device."""
    backend_images.WHOLE_SHARE, before = 0.0, backend_images.WHOLE_SHARE
    yield
    backend_images.WHOLE_SHARE = before


def feeding() -> dict[str, Any]:
    """An epoch of 21 numbered images in parts, which the devices do not divide, in batches of 8."""
    mesh, images = make_mesh(small_config(train={"batch_size": 8})), np.zeros((21, 2, 2, 3), np.uint8)
    images[:, 0, 0, 0] = np.arange(21)
    with images_in_parts():
        placed = place_images(images, mesh)
    data, order = DeviceData(placed, jnp.arange(21)), epoch_order(jax.random.key(0), jnp.int32(0), 21, 8)
    batches = [jax.jit(steps.gather, static_argnums=2)(data, index, mesh) for index in order]
    fed = [np.rint(np.asarray(images)[:, 0, 0, 0] * 255).astype(int) for images, _ in batches]
    return {
        "fed": np.concatenate(fed).tolist(),
        "order": np.asarray(order).ravel().tolist(),
        "labels": np.concatenate([labels for _, labels in batches]).tolist(),
        "shares": [len(shard.data) for shard in batches[0][0].addressable_shards],
        "held": [shard.data.nbytes for shard in jax.tree.leaves(placed)[0].addressable_shards],
    }


def whole_runs() -> dict[str, Any]:
    """How far a run over four devices is from one over one; whether it has the same bits with images in parts.

    Compiled as in use: without optimisations XLA adds up in another order behind another gather.
    """
    jax.config.update("jax_disable_most_optimizations", False)
    one, four = one_run(1), one_run(4)
    with images_in_parts():
        parted = one_run(4)
    same = same_bits(jax.device_get(four.state), jax.device_get(parted.state))
    return {"difference": largest_difference(one.state, four.state), "parts": same}


History = tuple[float, list[dict[str, Any]]]  # test accuracy, and the lines of the log


def quickstart(devices: int, **train: Any) -> History:
    """The quickstart as it ships, compiled as in use."""
    jax.config.update("jax_disable_most_optimizations", False)
    config = with_fields(
        load_config("configs/quickstart.py"),
        train={"compilation_cache": False} | train,
        log={"every": train.get("steps_per_call", 10), "tensorboard": False, "plots": False},
        distributed={"devices": devices},
    )
    with tempfile.TemporaryDirectory() as folder:
        result = loop.train(config, folder)
        return result.report.accuracy, read_metrics(Path(folder))


def compared(one: History, eight: History) -> dict[str, float]:
    """The largest differences, as shares: of what is evaluated, of gradients, of the loss as it is logged."""
    lines = list(zip(one[1], eight[1], strict=True))
    found = {"evaluated": 0.0, "gradient_norm": 0.0, "loss": 0.0}
    for ours, theirs in lines:
        names = (
            {"loss": "loss", "gradient_norm": "gradient_norm"} if ours["split"] == "train" else {"evaluated": "loss"}
        )
        for name, field in names.items():
            found[name] = max(found[name], abs(ours[field] / theirs[field] - 1))
    return found | {"lines": len(lines), "accuracy": abs(one[0] - eight[0])}


def quickstart_begun() -> dict[str, float]:
    """In float32, update by update."""
    jax.config.update("jax_numpy_dtype_promotion", "standard")
    return compared(*(quickstart(devices, steps=3, steps_per_call=1) for devices in (1, 8)))


def quickstart_done() -> dict[str, float]:
    """All of it, with images, network, gradients and state in float64; losses are added up and logged as float32."""
    jax.config.update("jax_numpy_dtype_promotion", "standard")
    create, gather, zeros = session.create_model, steps.gather, session.zero_sums

    def gather_wide(*arguments: Any) -> Any:
        images, labels = gather(*arguments)
        return images.astype(jnp.float64), labels

    steps.gather = gather_wide
    session.create_model = lambda config, classes, dtype: create(config, classes, jnp.float64, jnp.float64)
    session.zero_sums = lambda config: {name: jnp.float64(0) for name in zeros(config)}
    with float64():
        return compared(*(quickstart(devices) for devices in (1, 8)))


def kept() -> list[list[bool]]:
    """Of programs for some of the devices: whether the next process finds them, and gets the same from them."""
    stored._sources = lambda: "the same"
    jax.config.update("jax_compilation_cache_dir", None)
    found, devices = [], jax.devices()
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", folder)
        for some in (devices[:1], devices[2:3], devices[:2], devices, devices[::-1]):
            rows = NamedSharding(Mesh(np.array(some), ("data",)), PartitionSpec("data"))
            given, results = jax.device_put(np.arange(8.0, dtype=np.float32), rows), []
            for _ in range(2):
                jax.clear_caches()
                with compilation_cache(small_config(train={"compilation_cache": True})):
                    program = Stored("a").program("cumsum", jax.jit(jnp.cumsum, out_shardings=rows), given)
                    results.append(program.compile()(given))
            one, other = results
            found.append([program.traced is None, same_bits(one, other) and one.sharding == other.sharding])
    return found


def report() -> dict[str, Any]:
    """What `make test` asks of four devices."""
    one, four = (one_run(devices, model=Perceptron()) for devices in (1, 4))
    members = a_lot(model=Perceptron(), distributed={"devices": 2})
    return {
        "difference": largest_difference(one.state, four.state),
        "devices": len(jax.tree.leaves(four.state.params)[0].sharding.device_set),
        "counts": [one.report.count, four.report.count],
        "ways": [choose_way(members[0], 3), choose_way(members[0], 1)],
        "members": [outline(result) for result in train_many(members)],
        "prediction": prediction(),
        "portions": portions(),
        "feeding": feeding(),
        "kept": kept(),
    }


def report_more() -> dict[str, Any]:
    """What takes longer."""
    by_way = {"one": kernels(vmap=False), "vmap": kernels(vmap=True)}
    return {"kernels": by_way} | whole_runs() | whole_step()


def reported_by(function: str, devices: int) -> dict[str, Any]:
    """What a function of this file returns in a process of its own with so many devices."""
    code = "import sys; sys.path[:0] = sys.argv[1:]; import json, strictness, test_devices"
    code += f"; print('\\n' + json.dumps(test_devices.{function}()))"
    tests = Path(__file__).parent
    options = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", code, str(tests), str(tests.parent)]
    done = subprocess.run(command, env=os.environ | options, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def reported() -> dict[str, Any]:
    return reported_by("report", 4)


def test_a_run_is_the_same(reported):
    assert reported["devices"] == 4
    assert reported["difference"] < 1e-4
    assert reported["counts"] == [500, 500]


def test_each_device_trains_a_member_of_its_own(reported):
    assert reported["ways"] == ["devices", "sequential"]
    alone = [outline(result) for result in train_many(a_lot(model=Perceptron()), how="sequential")]
    np.testing.assert_allclose(reported["members"], alone, atol=1e-4)


def test_batches_are_spread_though_devices_divide_neither_set_nor_batch(reported):
    assert reported["prediction"] == {
        "seen": [[8, 4]] * 3,
        "in_order": True,
        "taken": [[8, 4]] * 2,
        "right": True,
    }


def test_a_batch_is_cut_within_each_devices_own_share(reported):
    """Parts cut without regard to where they lie would be gathered, and several hosts would be slower than one."""
    found = reported["portions"]
    assert found["right"] and found["sent"] == {"doubled": {}, "summed": {"all-reduce": 1}, "predicted": {}}


def test_the_devices_of_a_cpu_work_on_as_many_rows_at_a_time_as_one_does(reported):
    """They share its caches: with the rows of one on each of them, nothing would stay there."""
    assert reported["portions"]["at_a_time"] == {"doubled": 2, "summed": 2, "predicted": 8}


def test_images_in_parts_are_each_fed_once_an_epoch_in_the_same_order(reported):
    found = reported["feeding"]
    assert found["fed"] == found["labels"] == found["order"]
    assert len(set(found["fed"])) == 16
    assert found["shares"] == [2] * 4 and found["held"] == [6 * 2 * 2 * 3] * 4


def test_a_program_for_some_of_the_devices_is_found_again_for_these(reported):
    assert reported["kept"] == [[True, True]] * 5


@pytest.mark.slow
def test_a_whole_step_sends_sums_alone_and_prediction_nothing_and_parts_change_no_bit():
    found = reported_by("report_more", 4)
    assert found["parts"] is True and found["difference"] < 1e-4
    assert set(found["step"]) == {"all-reduce"} and found["prediction"] == {}
    for kernels in found["kernels"].values():
        assert kernels["difference"] < 1e-11 and set(kernels["sent"]) == {"all-reduce"}


@pytest.mark.slow
def test_eight_devices_begin_the_quickstart_as_one_does():
    """In float32 any other order of a sum is 1e-2 of the loss after 20 updates, on one device too."""
    found = reported_by("quickstart_begun", 8)
    assert found["lines"] == 5
    assert max(found["loss"], found["gradient_norm"]) < 1e-5


@pytest.mark.slow
def test_eight_devices_train_the_whole_quickstart_as_one_does():
    found = reported_by("quickstart_done", 8)
    assert found["lines"] == 30 + 15 + 1
    assert found["accuracy"] == 0
    assert found["gradient_norm"] < 1e-10  # as a share: at the end it is small
    assert max(found["loss"], found["evaluated"]) < 1e-6
