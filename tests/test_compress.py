"""From a trained run to a smaller one, which is a run like any other."""

import dataclasses
import functools
import json
import runpy
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
import pytest
from small_runs import StopAt, same_bits, small_config

from jax_cifar import load_run, signals
from jax_cifar.compress.prune import choose, remove
from jax_cifar.config import Config
from jax_cifar.config.files import to_dict
from jax_cifar.data import load_data
from jax_cifar.errors import CheckpointError, ConfigError, DataError, ExportError, Interrupted
from jax_cifar.evaluation.latency import measure_latencies
from jax_cifar.files import write_record
from jax_cifar.run.folder import CHECKPOINTS, read_config
from jax_cifar.run.reading import read_variables
from jax_cifar.training.finetune import compress, finetune_recipe
from jax_cifar.training.loop import train
from jax_cifar.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("quick_compile")
EPOCHS = 1.0  # of 6 updates


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run that averaged its weights."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    train(small_config(train={"epochs": 1}, optim={"ema_decay": 0.5}), folder)
    return folder


@pytest.fixture(scope="module")
def smaller(trained):
    """The networks on the way to a smaller run beside it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jax_cifar.training.finetune._require_same_elsewhere", lambda *given: None)
        patch.setattr(Trainer, "finish", finish_and_keep_what_a_signal_would_be_answered)
        return compress(trained, 0.4, trained.with_name("smaller"), finetune_epochs=EPOCHS)


def finish_and_keep_what_a_signal_would_be_answered(trainer, state, finish=Trainer.finish):
    trainer.folder.with_name("answer.txt").write_text(signals._guard.remains)
    return finish(trainer, state)


def test_the_smaller_network_is_an_ordinary_run(trained, smaller):
    assert list(smaller) == ["as trained", "pruned by 0.4", "pruned by 0.4, fine-tuned"]
    folder = trained.with_name("smaller")
    found, summary = load_run(folder), json.loads((folder / "summary.json").read_text())
    assert found.config.model.channels == (("conv1", 2), ("conv2", 5), ("conv3", 10))
    assert found.evaluate("test").accuracy == summary["test_accuracy"]
    assert summary["parameters"] == sum(leaf.size for leaf in jax.tree.leaves(found.variables["params"]))
    assert same_bits(found.variables, smaller["pruned by 0.4, fine-tuned"].variables)

    config, averaged = read_config(trained), read_variables(trained / CHECKPOINTS)
    assert averaged is not None
    expected = remove(config.model, averaged[1], choose(config.model, averaged[1], 0.4))
    assert same_bits(smaller["pruned by 0.4"].variables, expected)
    assert not same_bits(found.variables, expected)


def test_a_signal_after_the_fine_tuning_is_answered_with_a_command_that_compress_has(trained, smaller):
    answer = trained.with_name("answer.txt").read_text()
    assert answer == "The state is saved, and the training done. To go on, run the same command again."


def test_finetuning_is_the_runs_recipe_at_a_tenth_of_its_rate(trained, smaller):
    config, recipe = read_config(trained), read_config(trained.with_name("smaller"))
    assert recipe.name == "small_pruned" and recipe.optim.lr == pytest.approx(0.1 * config.optim.lr)
    assert (recipe.schedule.name, recipe.schedule.warmup, recipe.train.epochs) == ("cosine", 0.0, EPOCHS)
    assert recipe.optim == dataclasses.replace(config.optim, lr=recipe.optim.lr)
    assert (recipe.data, recipe.augment, recipe.mix) == (config.data, config.augment, config.mix)
    again = finetune_recipe(recipe, 2, ["--train.batch_size", "16"])
    assert (again.name, again.optim.lr, again.train.batch_size) == ("small_pruned", recipe.optim.lr, 16)


@pytest.mark.slow
def test_one_that_was_interrupted_goes_on_to_the_same_bits(trained, smaller, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr("jax_cifar.training.trainer.StopRequest", lambda: StopAt(4))
        with pytest.raises(Interrupted, match=r"Stopped by SIGTERM at step \d of 6; .* To go on, run the same command"):
            compress(trained, 0.4, tmp_path / "out", finetune_epochs=EPOCHS)
    assert not (tmp_path / "out/summary.json").exists()
    *_, last = compress(trained, 0.4, tmp_path / "out", finetune_epochs=EPOCHS).values()
    assert last.step == 6 and same_bits(last.variables, smaller["pruned by 0.4, fine-tuned"].variables)


def results_of(folder):
    files = [folder / "summary.json", folder / "config.json", *(folder / CHECKPOINTS).rglob("*.json")]
    return {path: path.read_bytes() for path in files}


def test_a_folder_that_holds_something_else_is_refused(trained, smaller):
    folder = trained.with_name("smaller")
    before = results_of(folder)
    with pytest.raises(CheckpointError, match=r"another configuration:\n  model.channels: .*\n.*Choose another --out"):
        compress(trained, 0.6, folder, finetune_epochs=EPOCHS)
    with pytest.raises(CheckpointError, match="another configuration"):
        compress(trained, 0.4, trained, finetune_epochs=EPOCHS)
    with pytest.raises(CheckpointError, match=r"train\.epochs: .*\n.*, or give the same configuration to resume\.$"):
        compress(trained, 0.4, folder, finetune_epochs=2 * EPOCHS)
    with pytest.raises(CheckpointError, match=r"not from those to start from now\. Choose another --out\.$"):
        compress(trained, 0.4, folder, finetune_epochs=EPOCHS, order=np.inf, overrides=["--log.every", "7"])
    assert results_of(folder) == before


def read_here(folder, suffix, images, shift=0.0):
    """What another process would give."""
    return {0: load_run(folder).logits(images) + np.float32(shift)}


def test_a_run_that_another_process_reads_otherwise_is_told(trained, smaller, monkeypatch):
    folder = trained.with_name("smaller")
    other = functools.partial(read_here, shift=1e-3)
    monkeypatch.setattr("jax_cifar.training.finetune.logits_elsewhere", other)
    with pytest.raises(ExportError, match=f"^{folder}: What was written does not give the network's logits"):
        compress(trained, 0.4, folder, finetune_epochs=EPOCHS)


def test_a_share_that_is_none_is_told_by_the_name_of_its_option(trained, tmp_path):
    main = runpy.run_path(str(Path(__file__).parents[1] / "scripts/compress.py"))["main"]
    with pytest.raises(ConfigError, match=r"--prune 1\.5 is not allowed"):
        main(["--workdir", str(trained), "--prune", "1.5", "--out", str(tmp_path / "out")])


def test_what_cannot_be_compressed_is_refused_and_leaves_nothing(trained, tmp_path):
    with pytest.raises(ConfigError, match=r"^--prune = 0\.95 is .* conv1 would lose all of its 4 filters"):
        compress(trained, 0.95, tmp_path / "out")
    with pytest.raises(ConfigError, match=r"--finetune-epochs = 0\.0 is not allowed"):
        compress(trained, 0.4, tmp_path / "out", finetune_epochs=0)
    with pytest.raises(CheckpointError, match=r"holds no config\.json"):
        compress(tmp_path, 0.4, tmp_path / "out")
    data = load_data(read_config(trained).data)
    others = dataclasses.replace(data, label_names=("cat", *data.label_names[1:]))
    with pytest.raises(DataError, match=r"class 0 is 'cat', in .* it is '.*'\. Give images of the run's own classes"):
        compress(trained, 0.4, tmp_path / "out", splits=others)
    write_record(tmp_path / "config.json", to_dict(Config(name="own", model=nn.Dense(3))))
    with pytest.raises(ConfigError, match=r"Dense is a network of one's own, .* only networks that ship can be pruned"):
        compress(tmp_path, 0.4, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_set_that_has_changed_is_refused_before_the_finetuning(trained, tmp_path, monkeypatch):
    whole = load_data(small_config().data)
    changed = [dataclasses.replace(part, images=255 - part.images) for part in (whole.train, whole.test)]
    other = dataclasses.replace(whole, train=changed[0], test=changed[1])
    monkeypatch.setattr("jax_cifar.training.finetune.load_data", lambda _: other)
    with pytest.raises(DataError, match="was trained on other images"):
        compress(trained, 0.4, tmp_path / "new", finetune_epochs=EPOCHS)
    assert not (tmp_path / "new").exists()


def test_the_script_shows_every_network_on_the_way(trained, smaller, capsys, monkeypatch):
    asked = []
    monkeypatch.setattr("jax_cifar.training.finetune.compress", lambda *a, **given: asked.append((a, given)) or smaller)
    quick = functools.partial(measure_latencies, seconds=0.0, least=2, most=2)
    monkeypatch.setattr("jax_cifar.evaluation.latency.measure_latencies", quick)
    main = runpy.run_path(str(Path(__file__).parents[1] / "scripts/compress.py"))["main"]
    words = ["--workdir", str(trained), "--prune", "0.4", "--out", str(trained.with_name("smaller"))]
    main([*words, "--finetune-epochs", str(EPOCHS), "--log.every", "2"])
    ((positional, given),) = asked
    assert positional == (str(trained), 0.4, str(trained.with_name("smaller")))
    assert (given["finetune_epochs"], given["overrides"]) == (EPOCHS, ["--log.every", "2"])
    rows = [line.split("|") for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert [row[1].strip() for row in rows[2:]] == list(smaller)
    for row, run in zip(rows[2:], smaller.values(), strict=True):
        assert row[4].strip() == f"{run.evaluate('test').accuracy:.2%}"
    assert [row[2].strip() for row in rows[2:]] == ["4,174", "2,238", "2,238"]


@pytest.mark.slow
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_in_steps_it_comes_to_the_same_size_and_can_be_compressed_again(scope, trained, tmp_path):
    options = {"finetune_epochs": 1.5, "schedule": "iterative", "scope": scope}
    runs = compress(trained, 0.4, tmp_path / "out", **options)
    assert len(runs) == 7
    assert all((tmp_path / f"out/stages/{i}/summary.json").is_file() for i in (1, 2))
    *_, last = runs.values()
    left = sum(number for _, number in last.config.model.channels)
    assert left == (2 + 5 + 10 if scope == "layer" else 28 - round(0.4 * 28))
    *_, again = compress(tmp_path / "out", 0.3, tmp_path / "again", finetune_epochs=1, scope=scope).values()
    assert sum(number for _, number in again.config.model.channels) < left
