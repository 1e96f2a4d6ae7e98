"""Command-line overrides: what they set, what they refuse and how that is told, and the help that lists them."""

import contextlib
import dataclasses
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
from config_strategies import overrides
from flax import linen as nn
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from jax_cifar.config import Config, ModelConfig, OptimConfig, TrainConfig
from jax_cifar.config.files import apply_overrides, field_types, help_text
from jax_cifar.errors import ConfigError

ROOT = Path(__file__).parents[1]
BASE = Config(name="base")


class OwnNet(nn.Module):
    """A user's network."""

    hidden: int = 8
    rates: tuple[float, ...] = (0.1,)
    act: object = nn.relu

    @nn.compact
    def __call__(self, images, train):
        return nn.Dense(self.hidden)(images)


OWN = Config(name="own", model=OwnNet())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--optim.lr", "-1"], r"optim\.lr = -1\.0 is not allowed: it must be greater than 0"),
        (["--optim.lr=nan"], r"optim\.lr = nan"),
        (["--optim.lr", "abc"], r"optim\.lr = abc is not allowed: it must be a number"),
        (["--optim.lr"], r"optim\.lr = nothing"),
        (["--optim.lr", "1", "2"], r"optim\.lr = 1 2"),
        (["--optim.lrr", "1"], r"--optim\.lrr is not a field of the configuration\. Did you mean --optim\.lr\?"),
        (["--lr", "1"], r"Did you mean --optim\.lr\?"),
        (["--optim", "adam"], r"Did you mean --optim\.name\?"),
        (["--model", "resnet18"], r"Did you mean --model\.name\?"),
        (["--optim.lr", "1e400"], r"optim\.lr = inf is not allowed: it must be a finite number"),
        (["--optim.lr", "1e39"], r"optim\.lr = 1e\+39 is not allowed: it must be 0, or between 1\.2e-38 and 3\.4e\+38"),
        (
            ["--train.resolutions", "16", "0.5", "32"],
            r"a tuple, each of its items \(a whole number, a number\)",
        ),
        (["--train.resolutions", "((16, 0.5), (32, 0.5))"], r"a number\), as words without brackets or commas\."),
        (["--optim.lr", "(0.1)"], r"optim\.lr = \(0\.1\) is not allowed: it must be a number\."),
        (["--nonsense", "1"], r"--help lists every field"),
        (["--train.batch_size", "12.5"], r"train\.batch_size = 12\.5 is not allowed: it must be a whole number"),
        (["--train.batch_size", "0"], r"train\.batch_size = 0"),
        (["--train.epochs", "inf"], r"train\.epochs = inf"),
        (["--model.name", "resnet35"], r"model\.name = 'resnet35' is not allowed: it must be one of .*'resnet34'"),
        (["--model.norm", "layer"], r"model\.norm = 'layer'"),
        (["--model.dropout", "1"], r"model\.dropout = 1\.0"),
        (["--optim.nesterov", "5"], r"optim\.nesterov = 5"),
        (["--optim.momentum", "0", "--optim.nesterov"], r"optim\.nesterov = True .* needs optim\.momentum > 0"),
        (["--model.stem", "imagenet"], r"model\.stem = 'imagenet'.*simple_cnn, only with resnet18"),
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
        (["--schedule.name", "step", "--schedule.milestones", "3", "2"], r"schedule\.milestones = \(3\.0, 2\.0\)"),
        (["--optim.accumulate", "3"], r"optim\.accumulate = 3 is not allowed: it must divide train\.batch_size = 128"),
        (["--optim.decay_multipliers", "(", "1"], r"optim\.decay_multipliers = \(\('\('.* must be a regular expr"),
        (["--optim.decay_multipliers", "a{99999999999}", "1"], r"optim\.decay_multipliers = .* must be a regular expr"),
        (["--augment", "RandomCrop"], r"--augment is chosen in the config file, not on the command line"),
        (["--train.loss", "mine"], r"--train\.loss is chosen in the config file"),
        (["--optim.name", "lion"], r"optim\.name = 'lion' is not allowed: it must be one of 'sgd', .* or a function"),
        (["--optm.lr", "1"], r"Did you mean --optim\.lr\?"),
        (["--optm.name", "adam"], r"Did you mean --optim\.name\?"),
        (["--seed", "1"], r"Did you mean --data\.seed or --train\.seed\?"),
        (["--log.plots", "false", "oops", "42"], r"log\.plots = false oops 42 .*: it must be true or false"),
        (["--log.no-plots", "oops"], r"log\.plots = False oops is not allowed"),
        (["--log.no-plots=false"], r"--log\.no-plots takes no value: say --log\.plots true or --log\.plots false"),
        (["--optim.lr", "1", "--config.optim.lr=2"], r"--optim\.lr is given twice: 1\.0, then 2\.0"),
        (["--log.plots", "--log.no-plots"], r"--log\.plots is given twice"),
        (
            ["--optim.name", "adam", "--optim.momentum", "0.5"],
            r"momentum = 0\.5 .* does nothing with optim\.name = adam",
        ),
        (["--schedule.pct_start", "0.9"], r"pct_start = 0\.9 .* does nothing with schedule\.name = cosine"),
        (["--loaded_as", "x"], r"--loaded_as is not a field"),
        (["stray"], r"Unexpected argument 'stray'"),
    ],
)
def test_a_wrong_override_is_one_message_with_the_field_and_its_value(words, message):
    with pytest.raises(ConfigError, match=message) as caught:
        apply_overrides(BASE, words)
    assert len(str(caught.value)) < 600
    assert "\n" not in str(caught.value)


def test_overrides_are_read_by_type():
    config = apply_overrides(
        BASE,
        ["--config.optim.lr=0.2", "--optim.nesterov", "--log.no-plots", "--train.compilation-cache", "False"]
        + ["--data.subset", "20", "--optim.clip_norm=None", "--schedule.milestones", "2", "3.5", "--name", "other"]
        + ["--schedule.name", "step"]
        + ["--optim.decay_multipliers", "norm", "0", "bias", "0.5", "--data.dir", "a=b"],
    )
    assert (config.optim.lr, config.optim.nesterov, config.log.plots) == (0.2, True, False)
    assert (config.train.compilation_cache, config.data.subset, config.optim.clip_norm) == (False, 20, None)
    assert (config.schedule.milestones, config.name, config.data.dir) == ((2.0, 3.5), "other", "a=b")
    assert config.optim.decay_multipliers == (("norm", 0.0), ("bias", 0.5))


def test_only_the_result_of_all_overrides_has_to_be_valid():
    assert apply_overrides(BASE, ["--optim.accumulate", "3", "--train.batch_size", "96"]).optim.accumulate == 3


@settings(derandomize=True, deadline=None, max_examples=100)
@given(overrides())
def test_an_override_sets_exactly_that_field_to_exactly_that_value(given):
    section, field, value, words = given
    try:
        config = apply_overrides(BASE, words)
    except ConfigError as error:
        # Two fields may not go together; what is spelled right is never misread.
        assume(not any(text in str(error) for text in ("divide", "add up", "ascending", "need")))
        raise
    assert getattr(getattr(config, section), field) == value
    others = dataclasses.replace(config, **{section: getattr(BASE, section)})
    assert others == BASE


@settings(derandomize=True, deadline=None, max_examples=100)
@given(st.lists(st.text(max_size=12) | st.sampled_from(["--optim.lr", "--log.plots", "--model.width=", "--a.b", "--"])))
def test_no_words_at_all_give_a_traceback(words):
    for config in (BASE, OWN):
        with contextlib.suppress(ConfigError):
            apply_overrides(config, words)


def test_a_field_of_the_file_that_does_nothing_with_the_new_name_falls_back():
    optim = OptimConfig(name="sgd", lr=0.3, momentum=0.8, nesterov=True, weight_decay=0.1)
    file = dataclasses.replace(BASE, optim=optim, model=ModelConfig(name="resnet18", stem="imagenet", width=8))
    config = apply_overrides(file, ["--optim.name", "adam", "--model.name", "simple_cnn"])
    assert config.optim == OptimConfig(name="adam", lr=0.3, weight_decay=0.1)
    assert config.model == ModelConfig(name="simple_cnn", width=8)
    with pytest.raises(ConfigError, match=r"optim\.nesterov = True .* does nothing with optim\.name = adam"):
        apply_overrides(file, ["--optim.name", "adam", "--optim.nesterov"])


def test_a_function_gives_way_to_a_name_of_the_command_line():
    file = dataclasses.replace(BASE, optim=OptimConfig(name=len), train=TrainConfig(loss=len))
    config = apply_overrides(file, ["--optim.name", "sgd", "--optim.momentum", "0.5"])
    assert (config.optim, config.train.loss) == (OptimConfig(momentum=0.5), len)


def test_fields_of_a_network_of_ones_own_are_set_by_name():
    config = apply_overrides(OWN, ["--model.hidden", "64", "--model.rates", "0.5", "1"])
    assert config.model == OwnNet(hidden=64, rates=(0.5, 1.0))
    assert {name for name in field_types(OWN) if name.startswith("model.")} == {"model.hidden", "model.rates"}
    assert "--model.hidden INT" in help_text(OWN, "train.py")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--model.name", "resnet18"],
            r"--model\.name cannot be set: the network is OwnNet.*: --model\.hidden, --model\.r",
        ),
        (["--model.act", "x"], r"--model\.act cannot be set: the network is OwnNet"),
        (["--model.hidden", "x"], r"model\.hidden = x is not allowed: it must be a whole number"),
        (["--model.rates", "nan"], r"model\.rates = \(nan,\) is not allowed: it must be a finite number"),
    ],
)
def test_what_cannot_be_set_of_a_network_of_ones_own_is_told(words, message):
    with pytest.raises(ConfigError, match=message):
        apply_overrides(OWN, words)


def test_help_lists_every_field_with_a_meaning():
    text = help_text(BASE, "train.py").replace("-", "_")
    for name in field_types():
        assert bool(re.search(rf"__{re.escape(name)}\b", text)) == (name != "augment"), name
    assert "loaded" not in text
    # A default stands behind its meaning, which is the comment behind the field or above it.
    assert not re.search(r"__[a-z_.]+ [^\n]*\n +\(default", text)


def test_help_shows_names_where_a_function_may_stand_too():
    text = help_text(dataclasses.replace(BASE, optim=OptimConfig(name=len)), "train.py")
    assert "--optim.name {sgd,adam,adamw,adagrad,muon}" in text
    assert "(default: len)" in " ".join(text.split())


def test_reading_a_config_needs_no_jax_and_help_no_heavy_import():
    heavy = "{'jax', 'numpy', 'torch', 'flax'}"
    code = f"import sys, jax_cifar.config.files, jax_cifar.config.source; assert not {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
    heavy = "{'torch', 'tensorflow', 'tensorflow_datasets', 'matplotlib', 'tensorboardX', 'sklearn', 'orbax'}"
    code = (
        "import runpy, sys; sys.argv = ['train.py', '--config', 'configs/cifar100_resnet34.py', '--help']\n"
        "runpy.run_path('scripts/train.py', run_name='__main__')\n"
        f"assert not {heavy} & set(sys.modules), {heavy} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True, text=True)
    assert "--optim.lr" in done.stdout


def test_not_finite_numbers_never_pass():
    for name, kind in field_types().items():
        if kind is float and name != "train.epochs":
            with pytest.raises(ConfigError):
                apply_overrides(BASE, [f"--{name}={math.nan}"])
