"""What each ingredient is worth: a vital one is found, a useless one is not, no finished run is lost or made twice."""

import json
import re
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import flax.linen as nn
import numpy as np
import pytest
from small_runs import Perceptron, small_config, with_fields

from jax_cifar import cli
from jax_cifar.config import Config
from jax_cifar.config.files import load_config
from jax_cifar.errors import CheckpointError, ConfigError
from jax_cifar.lab import ledger as ledgers
from jax_cifar.lab.ablate import Ablation, Row, variants
from jax_cifar.lab.ingredients import Ingredient, addable, choose, removable
from jax_cifar.lab.ledger import Ledger, identity
from jax_cifar.training.many import ManyResult

SCRIPT = Path(__file__).parents[1] / "scripts" / "ablate.py"
# Seeds differ by much, and differently in every experiment by a little.
OF_SEED, LITTLE = (0.0, 0.004, -0.003), (0.001, -0.0012, 0.0004)


def accuracy_of(config: Config) -> float | None:
    """As if momentum were worth 10 points, decay nothing, smoothing made it worse and the schedule were vital."""
    if config.schedule.name == "constant":
        return None
    seed, still, smooth = config.train.seed, config.optim.momentum == 0, config.train.label_smoothing > 0
    there = (config.optim.weight_decay > 0, still, smooth)
    little = sum(LITTLE[seed - shift] for shift, counts in enumerate(there) if counts)
    return 0.7 + OF_SEED[seed] + little - 0.1 * still - 0.02 * smooth


def result_of(config: Config) -> ManyResult:
    accuracy = accuracy_of(config)
    seconds = 2.0 if config.optim.momentum == 0 else 5.0
    tta = None if accuracy is None or config.eval.tta == "none" else accuracy + 0.01
    judged = config.data.val_fraction or config.data.name == "folder"  # which has a validation part of its own
    validation = accuracy - 0.2 if judged and accuracy is not None else None
    diverged = 7 if accuracy is None else None
    state, report = SimpleNamespace(step=7, params={"head": np.zeros(3)}), None
    return ManyResult(config, state, report, accuracy, 1.0, tta, validation, diverged, seconds)  # pyright: ignore[reportArgumentType]


@pytest.fixture
def trained(monkeypatch) -> list[list[Config]]:
    """The lots that were handed over for training, which takes no time; the accuracies are planted."""
    handed: list[list[Config]] = []

    def train_many(configs, on_result):
        handed.append(list(configs))
        for config in configs:
            on_result(result_of(config))

    monkeypatch.setattr(ledgers, "train_many", train_many)
    return handed


def recipe(**sections) -> Config:
    parts = {"optim": {"weight_decay": 1e-3, "nesterov": False}, "schedule": {"warmup": 0.0}, "model": Perceptron()}
    return small_config(**parts | sections)


def ablation_of(config: Config, folder: Path, *names: str, seeds: int = 3) -> Ablation:
    arms = choose([*removable(config), *addable(config)], names)
    return Ablation(config, arms, range(seeds), Ledger(folder / "runs.json"))


def test_the_table_says_what_each_is_worth(trained, tmp_path):
    ablation = ablation_of(recipe(), tmp_path, "weight decay", "momentum", "cosine schedule", "label smoothing")
    ablation.ledger.train(ablation.members(), lambda result: None)
    as_it_is, cosine, momentum, decay, smoothing = ablation.ranked()
    assert (as_it_is.name, as_it_is.way, as_it_is.worth, as_it_is.verdict) == ("as it is", "", None, "")
    assert (cosine.name, cosine.worth, cosine.verdict) == ("cosine schedule", None, "3 of 3 diverged")
    assert (cosine.seconds, cosine.cost) == (None, None)
    assert momentum.worth is not None and momentum.worth.difference == pytest.approx(0.1, abs=1e-3)
    assert (momentum.way, momentum.cost, momentum.seconds) == ("without", 3.0, 2.0)
    assert decay.verdict.startswith("cannot tell, p = 0.") and decay.worth is not None and decay.worth.paired
    assert smoothing.worth is not None and smoothing.worth.difference == pytest.approx(-0.02, abs=1e-3)
    assert (smoothing.name, smoothing.way) == ("label smoothing", "with")
    head, _, *lines = ablation.table().splitlines()
    assert "| test accuracy | worth, points (95 %) |" in head
    assert "| momentum | without: `--optim.momentum 0.0` | 60.0" in lines[2]
    assert "| helps, p = " in lines[2] and lines[2].endswith("| 2 s | +3 s |")
    assert "| label smoothing | with: `--train.label_smoothing 0.1` |" in lines[4] and "| hurts, p = " in lines[4]


def test_seeds_that_make_no_difference_give_no_interval():
    from jax_cifar.lab.statistics import difference

    worth = difference([0.8, 0.8], [0.7, 0.7], paired=True)
    row = Row("momentum", "without", "", (0.7, 0.7), 0, 0, 1.0, worth)
    assert row.verdict == "cannot tell: seeds make no difference"
    row = Row("momentum", "without", "", (0.7,), 1, 0, 1.0)
    assert row.verdict == "cannot tell from one seed, 1 of 2 diverged"
    assert Row("momentum", "without", "", (0.7,), 0, 2, 1.0).verdict == "2 to do"


@pytest.mark.parametrize(
    ("sections", "figure"),
    [
        ({}, "test_accuracy"),
        ({"eval": {"tta": "mirror"}}, "test_accuracy_tta"),
        ({"eval": {"tta": "mirror"}, "data": {"val_fraction": 0.1}}, "validation_accuracy"),
    ],
)
def test_held_out_images_judge_where_there_are_any(sections, figure, trained, tmp_path):
    ablation = ablation_of(recipe(**sections), tmp_path, "momentum")
    assert ablation.figure == figure
    ablation.ledger.train(ablation.members(), lambda result: None)
    shift = {"test_accuracy": 0.0, "test_accuracy_tta": 0.01, "validation_accuracy": -0.2}[figure]
    expected = [0.7 + OF_SEED[seed] + LITTLE[seed] + shift for seed in range(3)]
    assert ablation.rows()[0].accuracies == pytest.approx(expected)


def test_validation_images_that_a_set_has_of_its_own_judge_as_well(trained, tmp_path):
    config = recipe(eval={"tta": "mirror"}, data={"name": "folder", "dir": "pictures"})
    ablation = ablation_of(config, tmp_path, "momentum", "cosine schedule", "test-time augmentation")
    ablation.ledger.train(ablation.members(), lambda result: None)
    as_it_is, momentum, cosine = ablation.rows()  # of views only test images could tell
    assert as_it_is.accuracies == pytest.approx([0.5 + OF_SEED[seed] + LITTLE[seed] for seed in range(3)])
    assert momentum.worth is not None and momentum.worth.difference == pytest.approx(0.1, abs=1e-3)
    assert cosine.diverged == 3 and "| validation accuracy |" in ablation.table()


@pytest.mark.parametrize("ways", [("none", "mirror"), ("mirror", "none"), ("mirror", "mirror-translate")])
def test_variants_are_judged_by_what_all_have(ways, trained, tmp_path):
    parts = ({"eval": {"tta": way}, "data": {"seed": seed}} for seed, way in enumerate(ways))  # none is held out by it
    base, other = (recipe(**sections) for sections in parts)
    ablation = Ablation(base, variants(base, {"other": other}), range(3), Ledger(tmp_path / "runs.json"))
    assert ablation.figure == "test_accuracy"
    ablation.ledger.train(ablation.members(), lambda result: None)
    assert [(len(row.accuracies), row.diverged) for row in ablation.rows()] == [(3, 0), (3, 0)]


def test_test_time_augmentation_is_judged_by_the_same_runs(trained, tmp_path):
    config = recipe(eval={"tta": "mirror"})
    ablation = ablation_of(config, tmp_path, "test-time augmentation")
    ablation.ledger.train(ablation.members(), lambda result: None)
    assert [len(lot) for lot in trained] == [3]
    _, row = ablation.rows()
    assert row.worth is not None and row.worth.difference == pytest.approx(0.01)


def test_what_shares_a_program_is_one_lot_and_what_is_the_same_is_trained_once(trained, tmp_path):
    ablation = ablation_of(recipe(), tmp_path, "momentum", "weight decay", "dropout", seeds=2)
    again = Ingredient("again", "instead", "", with_fields(ablation.config, name="another_name"))
    ablation = Ablation(ablation.config, [*ablation.arms, again], ablation.seeds, ablation.ledger)
    ablation.ledger.train(ablation.members(), lambda result: None)
    assert [len(lot) for lot in trained] == [6, 2]
    assert ablation.rows()[-1].missing == 0
    assert [config.train.seed for config in trained[0]] == [0, 1] * 3


def test_the_ledger_is_gone_on_with_after_any_run(trained, tmp_path):
    first = ablation_of(recipe(), tmp_path, "momentum", "dropout")

    def stop_after_four(result: ManyResult) -> None:
        if len(first.ledger.runs) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        first.ledger.train(first.members(), stop_after_four)
    second = ablation_of(recipe(), tmp_path, "momentum", "dropout")
    assert [(row.name, row.missing) for row in second.rows()] == [("as it is", 0), ("dropout", 3), ("momentum", 2)]
    second.ledger.train(second.members(), lambda result: None)
    assert [len(lot) for lot in trained] == [6, 3, 2]
    assert not second.ledger.missing(second.members())


def test_a_run_is_known_by_all_that_changes_its_result(tmp_path, monkeypatch):
    config = recipe()
    same = [{"name": "other"}, {"log": {"every": 7}}, {"data": {"dir": "/elsewhere"}}, {"eval": {"batch_size": 7}}]
    other = [
        {"optim": {"lr": 0.01}},
        {"train": {"seed": 5}},
        {"eval": {"tta": "mirror"}},
        {"model": Perceptron(dropout=0.0)},
    ]
    assert {identity(with_fields(config, **change)) for change in same} == {identity(config)}
    assert len({identity(with_fields(config, **change)) for change in [{}, *other]}) == 5


@pytest.mark.parametrize("model", [{"name": "tiny_cnn"}, Perceptron()])
def test_the_runs_of_a_version_with_fewer_fields_are_known(model, trained, tmp_path):
    configs = [recipe(model=model, train={"seed": seed}) for seed in range(3)]
    Ledger(tmp_path / "runs.json").train(configs, lambda result: None)
    kept = json.loads((tmp_path / "runs.json").read_text())["runs"]
    for run in kept.values():
        del run["config"]["train"]["skip_nonfinite"], run["config"]["mix"]
    by_names_of_then = {f"then {name}": run for name, run in kept.items()}
    (tmp_path / "runs.json").write_text(json.dumps({"runs": by_names_of_then}))
    assert not Ledger(tmp_path / "runs.json").missing(configs)


def test_runs_that_were_kept_without_the_text_of_their_code_are_known_by_their_names(trained, tmp_path):
    known, unknown = recipe(), recipe(train={"seed": 1})
    Ledger(tmp_path / "runs.json").train([known], lambda result: None)
    ((name, run),) = json.loads((tmp_path / "runs.json").read_text())["runs"].items()
    del run["code"]
    other = {**run, "config": {"train": {"rate": 1}}}  # of fields that are gone
    (tmp_path / "runs.json").write_text(json.dumps({"runs": {name: run, "of then": other}}))
    assert Ledger(tmp_path / "runs.json").missing([known, unknown]) == [unknown]


@pytest.mark.parametrize("name", ["folder", "npz"])
def test_of_images_of_ones_own_the_place_says_which_they_are(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PLACE", str(tmp_path))
    places = ("a", "b", str(tmp_path / "a"), "$PLACE/a")
    one, other, *same = (identity(with_fields(recipe(), data={"name": name, "dir": place})) for place in places)
    assert one != other and same == [one] * 2


NETWORK = """
import flax.linen as nn
from jax_cifar.config import *

class Net(nn.Module):
    @nn.compact
    def __call__(self, images, train):
        return nn.Dense(10)(images.reshape(len(images), -1))

def get_config():
    return Config(name="own", data=DataConfig(name="synthetic"), model=Net())
"""


def test_a_network_of_ones_own_is_another_one_once_its_file_is(tmp_path):
    file, known = tmp_path / "own.py", set()
    for text in (NETWORK, NETWORK, NETWORK.replace("nn.Dense(10)(", "2 * nn.Dense(10)(")):
        file.write_text(text)
        known.add(identity(load_config(file)))
    assert len(known) == 2


@pytest.mark.parametrize("text", ["{", "[]", '{"runs": 3}', '{"runs": {}, "sha256": "00"}'])
def test_what_is_no_ledger_is_refused_and_left_as_it_is(text, tmp_path):
    path = tmp_path / "runs.json"
    path.write_text(text)
    with pytest.raises(CheckpointError, match=r"runs\.json holds no finished runs \("):
        Ledger(path)
    assert path.read_text() == text


CONFIG = """
from typing import Literal
from jax_cifar.config import *
from small_runs import small_config

def get_config(variant: Literal["one", "two", "four"] = "one"):
    width = {"one": 4, "two": 8, "four": 16}[variant]
    return small_config(name=f"net_{width > 4}", model={"width": width}, optim={"nesterov": False})
"""


@pytest.fixture
def script(tmp_path, monkeypatch):
    (tmp_path / "nets.py").write_text(CONFIG)
    monkeypatch.setattr(sys, "argv", ["ablate.py"])

    def call(*options: str) -> None:
        main = runpy.run_path(str(SCRIPT))["main"]
        main(["--config", str(tmp_path / "nets.py"), "--workdir", str(tmp_path / "out"), *options])

    return call


def test_the_script_lists_trains_and_draws(script, trained, tmp_path, capsys):
    script("--only", "momentum", "label smoothing", "--add", "--list")
    printed = capsys.readouterr().out
    assert "| momentum | without: `--optim.momentum 0.0` | 0 of 3 |" in printed
    assert "9 runs to do, time: known after the first" in printed and not (tmp_path / "out").exists()
    script("--only", "momentum", "label smoothing", "--add")
    printed = capsys.readouterr()
    worth = r"without momentum: 60\.0\d% \(sd 0\.\d\d%\) \+9\.9\d \(\+9\.\d\d to \+10\.\d\d\) helps, p = "
    assert re.search(worth, printed.err)
    assert "| momentum | without: `--optim.momentum 0.0` | 60.0" in printed.out
    assert "net_False, n = 3, compared seed by seed. Of 2 that are worth nothing about 0.1 would" in printed.out
    assert (tmp_path / "out/worth.png").stat().st_size > 10_000
    script("--only", "momentum", "label smoothing", "dropout", "--add", "--list")
    printed = capsys.readouterr().out
    assert "| dropout | without: `--model.dropout 0.0` | 0 of 3 |" in printed
    assert re.search("3 runs to do, time: 0:0[0-9]", printed)


def test_the_script_compares_the_experiments_of_a_file(script, trained, tmp_path, capsys):
    script("--variants", "--against", "model.width", "--train.label_smoothing", "0.1", "--seeds", "2")
    printed = capsys.readouterr().out
    assert "| as it is |  | 68." in printed and "| four | name, model.width | 68." in printed
    assert "| experiment | change | test accuracy | difference, points (95 %) |" in printed
    assert {config.train.label_smoothing for lot in trained for config in lot} == {0.1}
    assert (tmp_path / "out/lines.png").stat().st_size > 10_000


def test_the_script_prints_what_had_finished_when_it_is_stopped(script, trained, tmp_path, capsys, monkeypatch):
    def train_many(configs, on_result):
        on_result(result_of(configs[0]))
        raise KeyboardInterrupt

    monkeypatch.setattr(ledgers, "train_many", train_many)
    with pytest.raises(SystemExit) as stopped:
        cli.run(lambda _: script("--only", "momentum"))
    assert stopped.value.code == 75
    assert "| momentum | without: `--optim.momentum 0.0` | - |  | 3 to do |" in capsys.readouterr().out
    assert len(json.loads((tmp_path / "out/runs.json").read_text())["runs"]) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--seeds", "0"], "--seeds = 0 is not allowed"),
        (["--variants", "--add"], "--add = True is not allowed"),
        (["--against", "model.width"], "--against = 'model.width' is not allowed: it is for --variants"),
        (["--variants", "--against", "model.norm"], "a number: it is 'batch' in the experiment as it is"),
        (["--variants", "--only", "five"], "--only = 'five' is not allowed: choose from two, four"),
        (["--optim.rate", "0.1"], "optim.rate is not a field"),
    ],
)
def test_the_script_refuses_in_one_message(options, message, script, trained, tmp_path):
    with pytest.raises(ConfigError, match=message):
        script(*options)
    assert not trained and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("fields", "options", "message"),
    [
        ("model={'width': None}", ["--against", "model.width"], "a number: it is None in other"),
        ("data={'val_fraction': 0.1}", [], r"data\.val_fraction = 0\.1 is not allowed: other would be judged by"),
        (
            "data={'val_fraction': 0.25 if variant == 'other' else 0.5}",
            [],
            r"data\.val_fraction = 0\.25 is not allowed: .* which has 0\.5; .* such as --data\.val_fraction 0\.25",
        ),
        ("data={'seed': 7 * (variant == 'other')}", ["--data.val_fraction", "0.1"], r"data\.seed = 7 is not allowed"),
    ],
)
def test_the_script_refuses_variants_that_do_not_compare(fields, options, message, script, trained, tmp_path):
    both = f"small_config({fields if 'variant' in fields else ''}) if variant == 'one' else small_config({fields})"
    head = CONFIG.replace('"two", "four"', '"other"').partition("    width")[0]
    (tmp_path / "nets.py").write_text(f"{head}    return {both}\n")
    for also in ([], ["--list"]):
        with pytest.raises(ConfigError, match=message):
            script("--variants", *options, *also)
    assert not trained and not (tmp_path / "out").exists()


class Linear(nn.Module):
    """Compiled in a blink."""

    num_classes: int = 10

    @nn.compact
    def __call__(self, images, train):
        return nn.Dense(self.num_classes, use_bias=False)(images[:, ::4, ::4].reshape(len(images), -1))


def test_of_trained_networks_the_vital_ingredient_is_found_and_the_useless_is_not(tmp_path):
    optim = {"lr": 0.002, "weight_decay": 1e-6, "nesterov": False}
    schedule = {"name": "constant", "warmup": 0.0}
    config = small_config(model=Linear(), optim=optim, schedule=schedule, train={"epochs": 3}, eval={"batch_size": 500})
    ablation = ablation_of(config, tmp_path, "momentum", "weight decay")
    ablation.ledger.train(ablation.members(), lambda result: None)
    _, momentum, decay = ablation.ranked()
    assert (momentum.name, decay.name) == ("momentum", "weight decay")
    assert momentum.worth is not None and momentum.worth.low > 0.02, momentum
    assert decay.worth is not None and abs(decay.worth.difference) < 0.01 and decay.verdict.startswith("cannot tell")
