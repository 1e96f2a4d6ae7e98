"""Whole runs of the reference trainer, and its command."""

import dataclasses
import functools
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from small_runs import grey_data, small_config
from tolerances import agree, assert_close

from jax_cifar import augment as jax_augment
from jax_cifar import models
from jax_cifar.cli import run
from jax_cifar.config import Config, EvalConfig, ModelConfig, TrainConfig
from jax_cifar.config.files import load_config
from jax_cifar.data import load_data
from jax_cifar.errors import ConfigError, Diverged
from jax_cifar.evaluation.predict import VIEW_WEIGHTS, make_batches, predict_logits, tta_views
from jax_cifar.models.network import normalize
from jax_cifar.optim.schedules import make_schedule
from jax_cifar.run.folder import input_spec
from jax_cifar.training.plan import make_plan
from torch_ref import models as torch_models
from torch_ref import steps, train
from torch_ref.schedules import make_scheduler

ROOT = Path(__file__).parents[1]


def rates(config: Config, steps_per_epoch: int, total: int) -> np.ndarray:
    optimizer = torch.optim.SGD([torch.zeros(1)], config.optim.lr)
    scheduler = make_scheduler(config.schedule, optimizer, total, steps_per_epoch)
    values = []
    for _ in range(total):
        values.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return np.array(values)


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.py")), ids=lambda path: path.stem)
def test_every_config_has_the_same_schedule(path):
    config = load_config(path)
    images = 7 * config.train.batch_size + 3
    plan, theirs = make_plan(config, images, "cpu"), train.plan(config, images)
    assert theirs[:2] == (plan.total_steps, plan.steps_per_epoch) == (round(7 * config.train.epochs), 7)
    assert theirs.sides == [plan.side_at(step) for step in range(plan.total_steps)]
    ours = make_schedule(config.schedule, config.optim.lr, plan.total_steps, plan.steps_per_epoch, 0.9).lr
    assert_close(rates(config, 7, plan.total_steps), ours, "schedule")
    if config.schedule.name != "constant":
        longer = config.schedule.name == "warm_restarts"
        other = rates(config, 7 + longer, plan.total_steps + 1)[: plan.total_steps]
        assert not agree(other, ours, "schedule")


def test_a_run_and_the_same_again():
    config = small_config(train={"epochs": 1.5}, optim={"ema_decay": 0.5})
    result = train.train(config, verbose=False)
    assert len(result.losses) == 9
    assert set(result.seconds) == {"data", "compile", "train", "eval", "total"}
    assert sum(result.seconds.values()) <= 2 * result.seconds["total"]  # the total is one of them
    assert result.images_per_second == pytest.approx(9 * 32 / result.seconds["train"])
    again = train.train(config, verbose=False, each_epoch=True)
    assert (again.losses, again.test_accuracy, result.epochs) == (result.losses, result.test_accuracy, [])
    half, last = again.epochs
    assert 0 < half["seconds"] < last["seconds"]
    assert last == {"seconds": again.seconds["train"], "accuracy": again.test_accuracy}
    other = train.train(small_config(train={"epochs": 1.5, "seed": 1}), verbose=False)
    assert other.losses[0] != result.losses[0]
    splits = load_data(config.data)
    images = (jnp.asarray(splits.test.images, jnp.float32) / 255).transpose(0, 3, 1, 2)
    mean, std = (values.reshape(3, 1, 1) for values in steps.channel_statistics(splits.train.images))
    with torch.no_grad():
        logits = result.model.eval()(torch.tensor((np.asarray(images) - mean) / std, dtype=torch.float32)).double()
    labels = torch.tensor(splits.test.labels, dtype=torch.int64)
    assert result.test_loss == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), rel=1e-5)
    assert result.test_accuracy == (logits.argmax(1) == labels).double().mean().item()


@pytest.mark.parametrize("name", ["speedrun_net", "tiny_cnn"])
def test_grey_images_made_smaller_are_trained_on(name, tmp_path):
    shrunk = {"steps": 4, "resolutions": ((12, 1.0),)}
    result = train.train(small_config(data=grey_data(tmp_path), model={"name": name}, train=shrunk), verbose=False)
    assert len(result.losses) == 4 and next(result.model.parameters()).shape[1] == 1


def test_evaluating_after_an_epoch_is_no_training(monkeypatch):
    now, evaluate = [0], steps.evaluate

    def later(seconds):
        now[0] += seconds
        return now[0]

    monkeypatch.setattr(train, "time", SimpleNamespace(perf_counter=lambda: later(1)))
    monkeypatch.setattr(steps, "evaluate", lambda *arguments: later(1000) and evaluate(*arguments))
    result = train.train(small_config(train={"epochs": 3}), verbose=False, each_epoch=True)
    assert (result.seconds["train"], result.seconds["eval"]) == (3, 3003)
    assert [epoch["seconds"] for epoch in result.epochs] == [1, 2, 3]


def test_evaluation_counts_every_image_once():
    splits = load_data(small_config().data)
    cpu = torch.device("cpu")
    data, inputs = steps.to_device(splits.test, cpu), steps.make_inputs(splits.train, cpu)
    torch.manual_seed(0)
    model = torch_models.create_model(ModelConfig(name="tiny_cnn", width=4), 10)
    whole = steps.evaluate(model, data, inputs, 500, torch.float32, None)
    assert steps.evaluate(model, data, inputs, 333, torch.float32, None) == pytest.approx(whole, rel=1e-6)
    short = steps.evaluate(model, steps.DeviceData(*(part[:333] for part in data)), inputs, 333, torch.float32, None)
    assert short != pytest.approx(whole, rel=1e-6)


@pytest.mark.parametrize("tta", VIEW_WEIGHTS)
def test_test_time_augmentation_has_the_same_views_and_weights(tta, x64):
    images, draws = load_data(small_config().data).test.images[:7], np.random.default_rng(0)
    kernel = draws.normal(size=(32, 32, 3, 4))

    def logits(view):  # of each view something else, which is not linear
        return np.sin(np.einsum("nhwc,hwcl->nl", np.asarray(view, np.float64) / 255, kernel))

    def theirs(tta):
        pixels = torch.tensor(images).permute(0, 3, 1, 2).double() / 255
        predict = lambda view: torch.tensor(logits(255 * view.permute(0, 2, 3, 1).numpy()))  # noqa: E731
        return steps.logits_of_views(predict, pixels, tta)

    views = zip(VIEW_WEIGHTS[tta], tta_views(jnp.asarray(images), tta), strict=True)
    ours = sum(weight * logits(view) for weight, view in views)
    assert_close(theirs(tta), ours, "float64 operation")
    others = set(VIEW_WEIGHTS) - {tta}
    assert not any(agree(theirs(other), ours, "float64 operation") for other in others)


def test_unsure_is_of_the_same_images_in_both():
    images, draws = load_data(small_config().data).test.images[:40], np.random.default_rng(0)
    kernel = draws.normal(size=(32, 32, 3, 4)) / 10

    def logits(view):
        return np.einsum("nhwc,hwcl->nl", np.asarray(view, np.float64) / 255, kernel).astype(np.float32)

    def theirs(tta):
        pixels = torch.tensor(images).permute(0, 3, 1, 2).double() / 255
        predict = lambda view: torch.tensor(logits(255 * view.permute(0, 2, 3, 1).numpy()))  # noqa: E731
        return steps.logits_of_views(predict, pixels, tta)

    predict = lambda variables, view: jnp.asarray(logits(view))  # noqa: E731
    ours = predict_logits(predict, None, make_batches(images, 40), "unsure")
    assert_close(theirs("unsure"), ours, "float32 operation")
    assert not any(agree(theirs(other), ours, "float32 operation") for other in VIEW_WEIGHTS)


def test_a_channel_that_is_the_same_in_all_images_is_normalised_as_in_jax():
    splits = load_data(small_config().data)
    images = splits.train.images.copy()
    images[..., 1] = 77
    part = dataclasses.replace(splits.train, images=images, known_sums=None)
    spec = input_spec(small_config(), dataclasses.replace(splits, train=part))
    pixels = np.float32(images[:5]) / 255
    theirs = steps.make_inputs(part, torch.device("cpu"))(torch.tensor(pixels).permute(0, 3, 1, 2), None)
    ours = np.asarray(normalize(jnp.asarray(pixels), spec.mean, spec.std))
    assert_close(theirs.permute(0, 2, 3, 1).numpy(), ours, "float32 operation")
    assert np.abs(ours[..., 1]).max() < 1e-6


def test_an_epoch_shows_every_image_at_most_once():
    generator = torch.Generator().manual_seed(0)
    first, second = (steps.epoch_order(generator, 21, 5) for _ in range(2))
    assert first.shape == (4, 5)
    assert len(set(first.flatten().tolist())) == 20
    assert not torch.equal(first, second)


def test_the_recipes_views_give_a_second_figure(capsys):
    config = dataclasses.replace(small_config(train={"steps": 12}), eval=EvalConfig(batch_size=200, tta="mirror"))
    result = train.train(config)
    assert result.test_accuracy_tta is not None and result.test_accuracy_tta != result.test_accuracy
    assert f"with test-time augmentation {result.test_accuracy_tta:.2%}" in capsys.readouterr().out
    plain = train.train(dataclasses.replace(config, eval=EvalConfig(batch_size=200)))
    assert (plain.test_accuracy, plain.test_accuracy_tta) == (result.test_accuracy, None)


def test_images_grow_and_the_last_side_is_judged(monkeypatch):
    sides, update, judge = [], steps.Trainer.update, steps._logits
    monkeypatch.setattr(steps.Trainer, "update", lambda *given: sides.append(given[1].shape[2:]) or update(*given))
    config = small_config(train={"steps": 8, "resolutions": ((12, 0.5), (20, 0.5))})
    config = dataclasses.replace(config, model=ModelConfig(name="speedrun_net", width=4))
    started, judged, init = [], [], torch_models.SpeedrunNet.init_from
    note = lambda *given: started.append(given[1].shape) or init(*given)  # noqa: E731
    monkeypatch.setattr(torch_models.SpeedrunNet, "init_from", note)
    monkeypatch.setattr(steps, "_logits", lambda *given: judged.append(given[1].shape[2]) or judge(*given))
    train.train(config, verbose=False)
    assert sides == [(12, 12)] * 4 + [(20, 20)] * 4  # an epoch is of 6
    assert [tuple(shape[2:]) for shape in started] == [(20, 20)]
    assert judged[-1] == 20


def test_layout_precision_and_compilation(monkeypatch):
    config = small_config(train={"steps": 4})
    plain = train.train(config, verbose=False)
    last = train.train(config, channels_last=True, verbose=False)
    assert_close(np.array(last.losses), np.array(plain.losses), "float32 network")
    weight: Any = last.model.get_submodule("conv2").weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert not weight.is_contiguous()
    half = train.train(dataclasses.replace(config, train=TrainConfig(steps=4, batch_size=32, dtype="bfloat16")))
    assert_close(np.array(half.losses[:1]), np.array(plain.losses[:1]), "bfloat16 loss")
    assert not agree(np.array(half.losses[:1]), np.array(plain.losses[:1]), "float32 network")
    compiled = []

    def no_compiler(model):
        compiled.append(model)
        return lambda images: (_ for _ in ()).throw(RuntimeError("No C++ compiler\nmore"))

    monkeypatch.setattr(torch, "compile", no_compiler)
    with pytest.raises(ConfigError, match=r"torch.compile does not work here \(No C\+\+ compiler\)"):
        train.train(config, compiled=True, verbose=False)
    assert len(compiled) == 1
    monkeypatch.setattr(torch, "compile", lambda model: model)
    assert train.train(config, compiled=True, verbose=False).losses == plain.losses


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_batches_lie_in_memory_as_asked(memory_format):
    config = dataclasses.replace(small_config(mix={"mixup_alpha": 1.0}), augment=(jax_augment.RandomCrop(2),))
    part = load_data(config.data).train
    cpu = torch.device("cpu")
    prepare = steps.make_prepare(config, steps.to_device(part, cpu), steps.make_inputs(part, cpu), 10, memory_format)
    images, targets = prepare(torch.arange(32), 0, None)
    assert images.shape == (32, 3, 32, 32)
    assert images.is_contiguous(memory_format=memory_format)
    assert targets.shape == (32, 10)
    torch.testing.assert_close(targets.sum(1), torch.ones(32))


def test_speedrun_net_is_whitened_by_the_training_images_and_keeps_that():
    config = small_config(model={"name": "speedrun_net"}, optim={"name": "muon", "nesterov": False}, train={"steps": 4})
    splits = load_data(config.data)
    model: Any = train.train(config, verbose=False).model
    mean, std = (tuple(map(float, values)) for values in steps.channel_statistics(splits.train.images))
    images = jnp.asarray(splits.train.images, jnp.float32) / 255
    expected = np.asarray(models.whitening_kernel(normalize(images, mean, std))).reshape(12, 24)
    actual = model.whiten.weight.detach().numpy().transpose(2, 3, 1, 0).reshape(12, 24)
    # Of two eigenvalues that are close, float32 turns the eigenvectors as it pleases; this product does not care.
    assert_allclose = functools.partial(np.testing.assert_allclose, atol=1e-3 * np.square(expected).sum(axis=1).max())
    assert_allclose(actual @ actual.T, expected @ expected.T)
    np.testing.assert_allclose(np.linalg.norm(actual, axis=0), np.linalg.norm(expected, axis=0), rtol=1e-3)


def own_loss(logits, targets):
    return targets - logits[:, 0]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"loss": own_loss}, r"train\.loss = 'own_loss' is not allowed: .*cross-entropy alone; leave it out\.$"),
        ({"patience": 2}, r"train\.patience = 2 is not allowed: .*; set it to 0\.$"),
        ({"skip_nonfinite": 3}, r"train\.skip_nonfinite = 3 is not allowed: .*; leave it out\.$"),
    ],
)
def test_what_jax_would_train_otherwise_is_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        train.plan(small_config(train=fields), 200)


def test_runs_that_cannot_be():
    with pytest.raises(ConfigError, match=r"train\.batch_size = 201 is not allowed: there are 200 training images"):
        train.train(small_config(train={"batch_size": 201}), verbose=False)
    with pytest.raises(Diverged, match="training loss of epoch 1 is nan"):
        train.train(small_config(optim={"lr": 1e30}), verbose=False)


def test_the_command_ends_with_its_figures(tmp_path, capsys):
    file = tmp_path / "figures.json"
    options = "--data.name synthetic --data.subset 200 --data.val_fraction 0 --train.batch_size 32 --train.epochs 2"
    train.main(["--config", str(ROOT / "configs/quickstart.py"), *options.split(), "--json", str(file)])
    figures, said = json.loads(file.read_text()), capsys.readouterr()
    assert said.err == ""
    assert (figures["config_name"], len(figures["losses"])) == ("quickstart", 12)
    *_, first, second, last = said.out.splitlines()
    assert (first.split()[:2], second.split()[:2]) == (["1", "6"], ["2", "12"])
    assert last.startswith(f"test accuracy {figures['test_accuracy']:.2%}, loss {figures['test_loss']:.4f}; ")
    assert second.split()[3] == f"{figures['train_accuracy']:.2%}"


CONFIG = """from jax_cifar.augment import CLAHE
from jax_cifar.config import Config, DataConfig
def get_config():
    return Config("bad", data=DataConfig("synthetic"), augment=(CLAHE(),))
"""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "bad.py"], "augment[0] = CLAHE is not supported by torch_ref: use RandomCrop, Horizontal"),
        (["--config", "bad.py", "--optim.rate", "1"], "--optim.rate is not a field of the configuration"),
        (["--config", "bad.py", "--json", "nowhere/x.json"], "--json = 'nowhere/x.json' is not allowed"),
        ([], "--config FILE is missing"),
    ],
)
def test_mistakes_end_in_one_message(arguments, message, tmp_path, monkeypatch, capsys):
    (tmp_path / "bad.py").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train", *arguments])
    with pytest.raises(SystemExit) as stop:
        run(train.main)
    assert stop.value.code == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ")
    assert message in printed
    assert printed.count("\n") == 1


def test_help_needs_neither_framework():
    code = (
        "import sys; from torch_ref.train import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as end: assert not end.code\n"
        "assert not {'torch', 'jax'} & {*sys.modules}"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert "--channels-last" in done.stdout
    assert "--optim.lr" in done.stdout


@pytest.mark.slow  # half a minute of compiling C++
def test_compiled_speedrun_trains_in_bfloat16():
    """A process of its own: torch.compile cannot read what the tests check the shapes of."""
    command = [sys.executable, "-m", "torch_ref.train", "--config", "configs/cifar10_speedrun.py:72", "--compile"]
    data = ["--data.name", "synthetic", "--data.subset", "250", "--train.resolutions", "24", "1"]
    fields = ["--model.width", "8", "--train.steps", "3", "--train.dtype", "bfloat16"]
    done = subprocess.run([*command, *data, *fields], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
