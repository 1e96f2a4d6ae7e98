"""Configurations: values out of range, files, overrides, JSON, and every config that is shipped."""

import dataclasses
import json
import math
import re
import runpy
import subprocess
import sys
import typing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_cifar import load_config
from jax_cifar.augment import CutMix, RandomCrop
from jax_cifar.config import Config, DataConfig, OptimConfig, ScheduleConfig
from jax_cifar.config.files import apply_overrides, differing_fields, field_types, from_dict, help_text, to_dict
from jax_cifar.errors import ConfigError

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "configs").glob("*.py"))
BASE = Config(name="base")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["--optim.lr", "-1"], r"optim\.lr = -1\.0 is not allowed: it must be greater than 0"),
        (["--optim.lr=nan"], r"optim\.lr = nan"),
        (["--optim.lr", "abc"], r"optim\.lr = abc is not allowed: it must be float"),
        (["--optim.lr"], r"optim\.lr = nothing"),
        (["--optim.lr", "1", "2"], r"optim\.lr = 1 2"),
        (["--optim.lrr", "1"], r"--optim\.lrr is not a field of the configuration\. Did you mean --optim\.lr\?"),
        (["--lr", "1"], r"Did you mean --optim\.lr\?"),
        (["--nonsense", "1"], r"--help lists every field"),
        (["--train.batch_size", "12.5"], r"train\.batch_size = 12\.5 is not allowed: it must be int"),
        (["--train.batch_size", "0"], r"train\.batch_size = 0"),
        (["--train.epochs", "inf"], r"train\.epochs = inf"),
        (["--model.name", "resnet35"], r"model\.name = 'resnet35' is not allowed: it must be one of .*'resnet34'"),
        (["--model.norm", "layer"], r"model\.norm = 'layer'"),
        (["--model.dropout", "1"], r"model\.dropout = 1\.0"),
        (["--optim.nesterov", "5"], r"optim\.nesterov = 5"),
        (["--optim.momentum", "0", "--optim.nesterov"], r"optim\.nesterov = True .* needs optim\.momentum > 0"),
        (["--model.stem", "imagenet"], r"model\.stem = 'imagenet'.*simple_cnn has one stem"),
        (["--model.zero_init_residual"], r"model\.zero_init_residual = True.*simple_cnn"),
        (
            ["--model.name", "resnet18", "--model.norm", "none", "--model.zero_init_residual"],
            r"model\.zero_init_residual = True .* it needs model\.norm",
        ),
        (["--model.name", "speedrun_net", "--model.dropout", "0.1"], r"model\.dropout = 0\.1.*speedrun_net"),
        (["--model.convs_per_group", "2"], r"model\.convs_per_group = 2.*simple_cnn"),
        (["--model.whiten_bias", "false"], r"model\.whiten_bias = False.*simple_cnn"),
        (["--model.name", "speedrun_net", "--model.convs_per_group", "4"], r"model\.convs_per_group = 4"),
        (["--data.val_fraction", "1"], r"data\.val_fraction = 1\.0"),
        (["--schedule.name", "onecycle", "--schedule.pct_start", "1"], r"schedule\.pct_start = 1\.0"),
        (["--schedule.milestones", "3", "2"], r"schedule\.milestones = \(3\.0, 2\.0\)"),
        (["--optim.accumulate", "3"], r"optim\.accumulate = 3 is not allowed: it must divide train\.batch_size = 128"),
        (["--optim.decay_multipliers", "(", "1"], r"optim\.decay_multipliers: '\(' is not a regular expression"),
        (["--augment", "RandomCrop"], r"--augment cannot be set here"),
        (["stray"], r"Unexpected argument 'stray'"),
    ],
)
def test_a_wrong_override_is_one_message_with_the_field_and_its_value(overrides, message):
    with pytest.raises(ConfigError, match=message) as caught:
        apply_overrides(BASE, overrides)
    assert len(str(caught.value)) < 300
    assert "\n" not in str(caught.value)


def test_overrides_are_read_by_type():
    config = apply_overrides(
        BASE,
        ["--config.optim.lr=0.2", "--optim.nesterov", "--log.no-plots", "--train.compilation-cache", "False"]
        + ["--data.subset", "20", "--optim.clip_norm=None", "--schedule.milestones", "2", "3.5", "--name", "other"]
        + ["--optim.decay_multipliers", "norm", "0", "bias", "0.5", "--data.dir", "a=b"],
    )
    assert (config.optim.lr, config.optim.nesterov, config.log.plots) == (0.2, True, False)
    assert (config.train.compilation_cache, config.data.subset, config.optim.clip_norm) == (False, 20, None)
    assert (config.schedule.milestones, config.name, config.data.dir) == ((2.0, 3.5), "other", "a=b")
    assert config.optim.decay_multipliers == (("norm", 0.0), ("bias", 0.5))


def test_only_the_result_of_all_overrides_has_to_be_valid():
    assert apply_overrides(BASE, ["--optim.accumulate", "3", "--train.batch_size", "96"]).optim.accumulate == 3


@settings(derandomize=True, deadline=None, max_examples=50)
@given(lr=st.floats(1e-6, 10), epochs=st.floats(0.01, 1000), seed=st.integers(0, 2**32 - 1), width=st.integers(1, 512))
def test_overrides_and_json_keep_every_value(lr, epochs, seed, width):
    words = [f"--optim.lr={lr!r}", f"--train.epochs={epochs!r}", f"--train.seed={seed}", f"--model.width={width}"]
    config = apply_overrides(BASE, words)
    assert (config.optim.lr, config.train.epochs, config.train.seed, config.model.width) == (lr, epochs, seed, width)
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config


@pytest.mark.parametrize(
    "make",
    [
        lambda: OptimConfig(lr="0.1"),  # type: ignore[arg-type]
        lambda: OptimConfig(nesterov=1),  # type: ignore[arg-type]
        lambda: DataConfig(subset=True),
        lambda: ScheduleConfig(milestones=[1, 2]),  # type: ignore[arg-type]
        lambda: Config(name="a b"),
        lambda: Config(name="x", optim="sgd"),  # type: ignore[arg-type]
    ],
)
def test_a_wrong_type_in_a_config_file_is_refused(make):
    with pytest.raises(ConfigError, match="is not allowed"):
        make()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1", "defines no function get_config"),
        ("def get_config(): return 3", "returned int, not a jax_cifar Config"),
        ("def get_config(): return 1 / 0", "failed with ZeroDivisionError"),
        ("import nothing_of_this_name", "failed with ModuleNotFoundError"),
        ("def get_config(: pass", "failed with SyntaxError"),
        ("from jax_cifar.config import *\ndef get_config(): return OptimConfig(lr=-1)", r"optim\.lr = -1"),
        ("from jax_cifar.config import *\ndef get_config(): return OptimConfig(learning_rate=1)", "learning_rate"),
    ],
)
def test_a_broken_config_file_is_named(tmp_path, text, message):
    path = tmp_path / "broken.py"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(path)
    assert "broken.py" in str(caught.value)


def experiments(path):
    """What `load_config` takes for every experiment that a config file describes."""
    annotation = typing.get_type_hints(runpy.run_path(str(path))["get_config"]).get("variant")
    return [f"{path}:{variant}" for variant in typing.get_args(annotation)] or [path]


def test_a_file_may_describe_several_experiments(tmp_path):
    path = tmp_path / "two.py"
    path.write_text(
        "from typing import Literal\n"
        "from jax_cifar.config import Config\n"
        "def get_config(variant: Literal['one', 'other'] = 'one'):\n"
        "    return Config(name=f'two_{variant}')\n"
    )
    names = [load_config(given).name for given in (path, f"{path}:one", f"{path}:other")]
    assert names == ["two_one", "two_one", "two_other"]
    with pytest.raises(ConfigError, match=r"two\.py: variant = 'third' is not allowed: choose one of one, other\."):
        load_config(f"{path}:third")
    with pytest.raises(ConfigError, match=r"variant = 'one' is not allowed: the file describes one experiment only"):
        load_config("configs/quickstart.py:one")
    with pytest.raises(ConfigError, match=r"There is no config file .*three\.py\."):
        load_config(f"{tmp_path / 'three.py'}:one")


def test_a_missing_config_file_names_the_nearest():
    with pytest.raises(ConfigError, match=r"There is no config file .*quickstar\.py.* Did you mean .*quickstart\.py"):
        load_config(ROOT / "configs/quickstar.py")


def test_a_file_has_every_variant_that_it_names():
    names = {f"cifar100_ablation_{name}" for name in ("adam", "sgd", "sgd_decay", "adamw", "adamw_slow")}
    assert {load_config(given).name for given in experiments(ROOT / "configs/cifar100_ablation.py")} == names


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_config_loads_says_what_it_claims_and_survives_json(path):
    docstring = path.read_text().split('"""')[1]
    assert f"configs/{path.name}" in docstring
    assert "%" in docstring or "not measured yet" in docstring.lower()
    for experiment in experiments(path):
        config = load_config(experiment)
        assert config.name.startswith(path.stem)
        assert from_dict(json.loads(json.dumps(to_dict(config)))) == config


def test_the_recipes_are_those_that_were_published():
    simple = load_config(ROOT / "configs/cifar10_simple_cnn.py")
    assert (simple.optim.lr, simple.optim.momentum, simple.train.batch_size, simple.train.epochs) == (
        0.02,
        0.9,
        128,
        10,
    )
    assert (simple.augment, simple.model.norm, simple.schedule.name) == ((), "none", "constant")
    resnet = load_config(ROOT / "configs/cifar100_resnet34.py")
    assert (resnet.train.epochs, resnet.train.batch_size, resnet.train.label_smoothing) == (400, 128, 0.1)
    assert (resnet.optim.lr, resnet.optim.momentum, resnet.optim.weight_decay) == (0.1, 0.9, 1e-3)
    assert (resnet.mix.mixup_alpha, resnet.mix.cutmix_alpha) == (1.0, 1.0)
    assert (resnet.schedule.name, resnet.schedule.t_0, resnet.schedule.t_mult) == ("warm_restarts", 50, 2)


def test_json_names_transforms_and_refuses_unknown_ones():
    config = dataclasses.replace(BASE, augment=(RandomCrop(padding=3),))
    values = to_dict(config)
    assert values["augment"][0] == {"transform": "RandomCrop", **dataclasses.asdict(RandomCrop(padding=3))}
    values["augment"][0]["transform"] = "os.system"
    with pytest.raises(ConfigError, match=r"The transform os\.system is not part of"):
        from_dict(values)
    with pytest.raises(ConfigError, match=r"optim\.speed is not a field"):
        from_dict({"name": "x", "optim": {"speed": 1}})
    assert CutMix  # exported, though not a transform of images alone


def test_differing_fields_are_those_that_change_the_numbers():
    other = apply_overrides(BASE, ["--optim.lr", "0.3", "--log.every", "7", "--data.dir", "x", "--eval.tta", "mirror"])
    assert differing_fields(to_dict(BASE), to_dict(other)) == ["optim.lr: 0.1 there, 0.3 here"]


def test_help_lists_every_field_with_a_meaning():
    text = help_text(BASE, "train.py").replace("-", "_")
    for name in field_types():
        assert bool(re.search(rf"__{re.escape(name)}\b", text)) == (name != "augment"), name
    # A field's meaning is the comment behind it.
    source = (ROOT / "jax_cifar/config/sections.py").read_text()
    for line in source.splitlines():
        if line.startswith("    ") and ": " in line and " = " in line and line.strip()[0].islower() and "(" not in line:
            name = line.split(":")[0].strip()
            if any(field.endswith(f".{name}") for field in field_types()):
                assert "  # " in line, line


def test_reading_a_config_needs_no_jax_and_help_no_heavy_import():
    code = "import sys, jax_cifar.config; assert not {'jax', 'numpy', 'torch'} & set(sys.modules), sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)
    heavy = "{'torch', 'tensorflow', 'tensorflow_datasets', 'matplotlib', 'tensorboardX', 'sklearn', 'orbax'}"
    code = (
        "import runpy, sys; sys.argv = ['train.py', '--config', 'configs/cifar100_resnet34.py', '--help']\n"
        "try: runpy.run_path('scripts/train.py', run_name='__main__')\n"
        "except SystemExit as end: assert not end.code\n"
        f"assert not {heavy} & set(sys.modules), {heavy} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True, text=True)
    assert "--optim.lr" in done.stdout


def test_not_finite_numbers_never_pass():
    for name, kind in field_types().items():
        if kind is float and name != "train.epochs":
            with pytest.raises(ConfigError):
                apply_overrides(BASE, [f"--{name}={math.nan}"])
