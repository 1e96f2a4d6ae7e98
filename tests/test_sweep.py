"""A sweep finds the best setting by validation images alone, goes on where it stopped, and says what it found."""

import dataclasses
import json
import runpy
from pathlib import Path
from typing import Any

import pytest
from small_runs import Perceptron, a_lot, tiny_config, with_fields

from jax_cifar.config import Config
from jax_cifar.config.files import to_record
from jax_cifar.config.modules import running
from jax_cifar.data import load_data
from jax_cifar.errors import ConfigError
from jax_cifar.files import sha256_of_json, write_record
from jax_cifar.lab import lots as lots_module
from jax_cifar.lab import sweep_folder
from jax_cifar.lab.space import parse_space
from jax_cifar.lab.sweep import draw, sweep
from jax_cifar.lab.sweep_folder import Search
from jax_cifar.lab.sweep_tables import count, noise, report, verdict, winner_table
from jax_cifar.training.many import train_many
from jax_cifar.training.programs import program_of
from jax_cifar.training.session import Session

SCRIPT = Path(__file__).parents[1] / "scripts" / "sweep.py"
SPACE = ["optim.lr=[0.02,0.1,1e30] optim.momentum=[0.5,0.9]"]


def config_of(**sections):
    return tiny_config(model=Perceptron(), log={"every": 1}, **sections)


@pytest.fixture(scope="module")
def seen():
    """What the sweep of `found` evaluated, in order, and the sessions that it made."""
    return {"parts": [], "sessions": []}


@pytest.fixture(scope="module")
def found(tmp_path_factory, seen):
    """A grid of six, two of which diverge, with two seeds of the winner and of the configuration itself."""
    logits, make = Session.logits, Session.__init__

    def note_part(self, variables, part, *rest, **options):
        seen["parts"].append(part)
        return logits(self, variables, part, *rest, **options)

    def note_session(self, config, *rest):
        seen["sessions"].append(config)
        make(self, config, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Session, "logits", note_part)
        patch.setattr(Session, "__init__", note_session)
        folder = tmp_path_factory.mktemp("sweep") / "grid"
        return sweep(config_of(), SPACE, workdir=folder, grid=True, seeds=2, baseline=True)


def test_no_trial_sees_the_test_images_and_the_winner_is_judged_by_nothing_else(found, seen):
    assert seen["parts"] == ["validation"] * 4 + ["test"] * 4


def test_trials_that_differ_in_rate_and_momentum_share_a_program_with_the_winner(found, seen):
    assert len(seen["sessions"]) == 1


def test_a_trial_has_the_figures_of_a_run_of_its_setting(found):
    config = with_fields(config_of(), optim={"lr": 0.02, "momentum": 0.9})
    winner = with_fields(config, optim={"lr": 0.1}, train={"seed": 2})
    assert found.setting["optim.lr"] == "0.1"
    winner = with_fields(winner, optim={"momentum": float(found.setting["optim.momentum"])})
    trial, last = train_many([config, winner])
    assert found.trials[1]["accuracy"] == trial.validation_accuracy
    assert found.winner[1]["accuracy"] == last.test_accuracy
    assert found.winner[1]["test_loss"] == last.test_loss


def test_one_that_diverges_is_counted_and_told_and_is_never_the_best(found):
    assert [trial["outcome"] for trial in found.trials] == ["finished"] * 4 + ["diverged"] * 2
    assert [trial["accuracy"] for trial in found.trials[4:]] == [None, None] and len(found.ranked) == 4
    assert "6 trials: 4 finished, 2 diverged" in report(found)


def test_a_grid_of_two_fields_is_told_as_a_matrix_and_the_winner_with_its_interval(found):
    lines = report(found).splitlines()
    assert lines[0] == "| lr \\ momentum | 0.5 | 0.9 |" and lines[4] == "| 1e30 | diverged | diverged |"
    assert lines[2].startswith("| 0.02 | ") and lines[2].count("%") == 2
    (best,) = [line for line in lines if line.startswith("| the best | lr 0.1, momentum")]
    accuracies = [run["accuracy"] for run in found.winner]
    assert best.split(" | ")[2:4] == ["2", f"{sum(accuracies) / 2:.2%}"] and " to " in best
    assert "2 seeds in pairs" in verdict(found)


def run_of(seed: int, accuracy: float | None = None, **notes) -> dict[str, Any]:
    outcome = "refused" if notes else "diverged" if accuracy is None else "finished"
    setting = {"train.seed": seed}
    return {"setting": setting, "outcome": outcome, "accuracy": accuracy, "test_loss": 1.0, "images": 100, **notes}


def test_how_the_winner_ended_is_told_by_its_name_and_a_refusal_with_its_reason(found):
    winner = [run_of(1, 0.8), run_of(2), run_of(3, reason="not today."), run_of(4, reason="nor tomorrow.")]
    _, _, best, own, *why = winner_table(dataclasses.replace(found, winner=winner)).splitlines()
    assert " | 4, 1 diverged, 2 refused | 80.00% | - | - | 1.0000 |" in best and " | - | 2 | " in own
    assert why == ["", "Refused: the best, seed 3: not today.", "Refused: the best, seed 4: nor tomorrow."]


def test_gaps_that_are_all_the_same_give_no_interval(found):
    same = dataclasses.replace(
        found, winner=[run_of(1, 0.75), run_of(2, 0.5)], baseline=[run_of(1, 0.5), run_of(2, 0.25)]
    )
    assert verdict(same).endswith(
        "2 seeds in pairs: +25.00 points in every pair, so that how far seeds spread is not known."
    )


@pytest.mark.parametrize(("accuracy", "margin"), [(1.0, 0.0373), (0.5, 0.1359), (0.0, 0.0373)])
def test_one_image_tells_no_setting_from_another_however_good_they_are(found, accuracy, margin):
    assert noise(run_of(0, accuracy)) == pytest.approx(margin, abs=1e-4)
    trials = [
        {**run_of(0, value), "setting": {"optim.lr": f"{value}", "optim.momentum": "0.9"}} for value in (1.0, 0.99)
    ]
    assert "100 validation images cannot tell it from lr 0.99, mom" in count(dataclasses.replace(found, trials=trials))


def test_the_record_holds_all_of_it_and_the_pictures_are_drawn(found):
    record = json.loads((found.folder / "sweep.json").read_text())
    assert record["trials"] == found.trials and record["winner"] == found.winner
    assert record["space"] == [str(axis) for axis in found.axes] and record["config"]["name"] == "small"
    drawn = draw(found)
    assert {path.name for path in drawn} == {"slices.png", "parallel.png", "importance.png"}
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in drawn)


def test_the_same_sweep_again_trains_nothing_and_finds_the_same(found, monkeypatch):
    monkeypatch.setattr(lots_module, "train_group", lambda *_: pytest.fail("trained"))
    config = with_fields(config_of(), log={"tensorboard": True})
    again = sweep(config, SPACE, workdir=found.folder, grid=True, seeds=2, baseline=True)
    assert again == found


def test_a_sweep_goes_on_in_a_version_with_more_fields(tmp_path, monkeypatch):
    def of_a_version_before(config: Config) -> dict[str, Any]:
        values = to_record(config)
        del values["train"]["skip_nonfinite"], values["mix"]
        return values

    given = {"space": ["optim.lr=[0.1]"], "workdir": tmp_path, "grid": True, "seeds": 1, "baseline": True}
    with monkeypatch.context() as patch:
        patch.setattr(sweep_folder, "to_record", of_a_version_before)
        before = sweep(config_of(), **given)
    monkeypatch.setattr(lots_module, "train_group", lambda *_: pytest.fail("trained"))
    assert sweep(config_of(), **given) == before


def test_a_sweep_whose_studies_were_called_by_all_that_was_given_goes_on(tmp_path):
    """As they were once: by what is free to change, too, which `config_of` has otherwise than it is by default."""
    given, other = config_of(), config_of(train={"compilation_cache": True})
    values = to_record(given)
    write_record(tmp_path / "sweep.json", {"config": values, "space": [], "grid": True, "code": {}})
    hashed = {name: value for name, value in values.items() if name not in ("log", "checkpoint", "eval")}
    hashed["distributed"] = None
    name = f"small-{sha256_of_json({'config': hashed, 'space': [], 'grid': True})[:12]}"
    assert {Search(one, [], True).make_folder(tmp_path)[1].name for one in (given, other)} == {name}
    assert Search(given, [], True).name == Search(other, [], True).name != name


def test_of_two_processes_that_begin_a_sweep_at_once_neither_is_refused(tmp_path, monkeypatch):
    one, glob = Search(config_of(), parse_space(SPACE, config_of()), True), Path.glob

    def after_the_other_began(folder: Path, pattern: str):
        if pattern == "*.json":
            one.write(folder)
        return glob(folder, pattern)

    monkeypatch.setattr(Path, "glob", after_the_other_began)
    assert one.make_folder(tmp_path / "sweep")[1].name == one.name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"config": config_of(optim={"ema_decay": 0.5})},
            r"holds another sweep:\n  optim\.ema_decay: 0\.9 there, 0\.5",
        ),
        (
            {"space": ["optim.lr=[0.02,0.2]"]},
            r"--space: optim\.lr=\[0\.02, 0\.1, 1e30\].* there, optim\.lr=\[0\.02, 0\.2\]",
        ),
        ({"grid": False, "trials": 6}, "--grid: True there, False here"),
        ({"trials": 5}, "a grid has all its 6 combinations"),
        ({"grid": False}, "say how many, or --grid"),
        ({"how": "quickly"}, "how = 'quickly' is not allowed"),
        ({"seeds": -1}, "--seeds = -1 is not allowed"),
        ({"seeds": 0, "baseline": True}, "--seeds = 0 is not allowed: --baseline trains"),
        ({"chunk": 4}, "chunk = 4 is not allowed: give at least 1, and only with vmap"),
        ({"chunk": 0, "how": "vmap"}, "chunk = 0 is not allowed"),
        ({"config": config_of(eval={"every": 0}), "pruning": "median"}, "--prune = 'median' is not allowed: .* never"),
        ({"config": config_of(eval={"every": 1}, train={"patience": 2})}, r"train\.patience = 2 is not allowed"),
        ({"config": config_of(train={"debug_nans": True})}, r"train\.debug_nans = True is not allowed"),
    ],
)
def test_what_is_another_sweep_or_none_is_refused(found, change, message):
    arguments = {"config": config_of(), "space": SPACE, "workdir": found.folder, "grid": True}
    with pytest.raises(ConfigError, match=message):
        sweep(**arguments | change)


@pytest.mark.parametrize(("name", "same"), [("npz", False), ("folder", False), ("cifar10", True)])
def test_a_sweep_over_images_of_ones_own_belongs_to_their_place(name, same, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    axes = parse_space(["optim.lr=[0.1,0.2]"], config_of())
    one, other, again = (
        Search(config_of(data={"name": name, "dir": place}), axes, True) for place in ("a", "b", str(tmp_path / "a"))
    )
    one.make_folder(tmp_path / "sweep")
    again.make_folder(tmp_path / "sweep")
    assert one.digest == again.digest and (one.digest == other.digest) is same
    if not same:
        with pytest.raises(ConfigError, match=r"holds another sweep:\n  data\.dir: '/.*/a' there, '/.*/b' here"):
            other.make_folder(tmp_path / "sweep")


def test_a_sweep_over_a_network_of_ones_own_belongs_to_its_code(tmp_path):
    def search(number: int) -> Search:
        file = tmp_path / "own_net.py"
        file.write_text(f"import flax.linen as nn\nclass Net(nn.Module):\n    size: int = 3\n    number = {number}\n")
        with running(file) as module:
            config = tiny_config(model=module.Net())
        return Search(config, parse_space(["optim.lr=[0.1,0.2]"], config), True)

    one, other, again = map(search, (1, 2, 1))
    one.make_folder(tmp_path / "sweep")
    again.make_folder(tmp_path / "sweep")
    assert one.digest == again.digest != other.digest
    with pytest.raises(ConfigError, match=r"holds another sweep:\n  the code in own_net\.py: .{12} there, .{12} here"):
        other.make_folder(tmp_path / "sweep")


def test_the_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"is not the folder of a sweep: it holds no sweep\.json"):
        sweep(config_of(), SPACE, workdir=tmp_path, grid=True)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_without_a_validation_part_the_trials_hold_out_a_tenth_and_the_winner_nothing(tmp_path, monkeypatch):
    trained, said = [], []

    def no_training(self, trials, claims, config, part, prune):
        trained.append((part, config.data.val_fraction))
        notes = {"outcome": "finished", "seconds": 1.0, "images": 50, "test_loss": 1.0}
        trials.finish(claims[0], 0.5, notes)

    monkeypatch.setattr(lots_module.Lots, "train", no_training)
    config = config_of(data={"val_fraction": 0.0})
    sweep(config, ["optim.lr=[0.1]"], workdir=tmp_path, grid=True, seeds=1, say=said.append)
    assert trained == [("validation", 0.1), ("test", 0.0)] and "hold out 10%" in said[0]


def test_validation_images_of_the_data_set_are_what_trials_are_judged_by(tmp_path):
    config, said = config_of(data={"val_fraction": 0.0}), []
    divided = load_data(config_of(data={"val_fraction": 0.3}).data)
    found = sweep(config, ["optim.lr=[0.1]"], workdir=tmp_path, grid=True, seeds=1, splits=divided, say=said.append)
    assert divided.validation is not None and not said
    assert found.trials[0]["images"] == len(divided.validation.labels) and found.winner[0]["outcome"] == "finished"


@pytest.mark.parametrize(
    ("error", "reason"), [(ConfigError("not today."), "not today"), (MemoryError(), "MemoryError")]
)
def test_where_no_setting_can_be_trained_the_reason_is_told(error, reason, tmp_path, monkeypatch):
    def refuse(*_):
        raise error

    monkeypatch.setattr(lots_module, "train_group", refuse)
    with pytest.raises(ConfigError, match=rf"No trial came to its end: {reason}\. Choose another --space"):
        sweep(config_of(), ["optim.lr=[0.1]"], workdir=tmp_path, grid=True)


def test_what_is_compiled_into_a_program_needs_another(monkeypatch):
    first, second, third = a_lot()
    assert program_of(first) == program_of(second) == program_of(third)
    wider = with_fields(first, train={"batch_size": 16})
    muon = with_fields(first, optim={"name": "muon", "nesterov": False})
    faster = with_fields(muon, optim={"lr": 0.5})
    assert len({program_of(config) for config in (first, wider, muon, faster)}) == 4


def test_trials_that_are_given_up_are_pruned_and_a_lot_of_none_else_ends(tmp_path, monkeypatch):
    steps, advance = [], Session.advance
    monkeypatch.setattr(Session, "advance", lambda *given: steps.append(given[2]) or advance(*given))
    monkeypatch.setattr("jax_cifar.lab.trials.Trials.report", lambda *_: True)
    config = config_of(eval={"every": 0.5})
    with pytest.raises(ConfigError, match="every one diverged or was given up"):
        sweep(config, ["optim.lr=log(0.01,0.1)"], 2, tmp_path / "none", seeds=0, how="vmap", chunk=2)
    assert steps == [0]  # of four
    trained = config_of(eval={"every": 1})
    monkeypatch.setattr("jax_cifar.lab.trials.Trials.report", lambda self, claim, percent, value: claim.index == 1)
    found = sweep(trained, ["optim.lr=log(0.01,0.1)"], 2, tmp_path / "some", seeds=0, how="vmap", chunk=2)
    assert [trial["outcome"] for trial in found.trials] == ["finished", "pruned"]
    assert found.trials[1]["accuracy"] is None and "2 trials: 1 finished, 1 pruned" in report(found)


def test_the_script_says_what_it_found_and_how_to_train_it(found, tmp_path, capsys, monkeypatch):
    file = tmp_path / "tiny.py"
    file.write_text("from small_runs import *\ndef get_config(): return tiny_config(model=Perceptron())\n")
    main = runpy.run_path(str(SCRIPT))["main"]
    monkeypatch.setattr("jax_cifar.lab.sweep.sweep", lambda *_, **given: found)
    also = ["--optim.weight-decay=0.01", "--optim.lr", "0.3"]  # the one goes on, the other gives way to what was found
    main(["--config", str(file), "--space", *SPACE, "--grid", *also, "--json", str(tmp_path / "all.json")])
    out = capsys.readouterr().out
    momentum = found.setting["optim.momentum"]
    changes = f"--optim.weight-decay=0.01 --optim.lr 0.1 --optim.momentum {momentum}"
    assert f"to train it: python scripts/train.py --config {file} {changes}\n" in out
    assert json.loads((tmp_path / "all.json").read_text())["trials"] == found.trials
    for wrong, message in (
        ([], "--space is missing"),
        (["--space", "x", "--no-prune", "--prune", "median"], "choose one"),
    ):
        with pytest.raises(ConfigError, match=message):
            main(["--config", str(file), *wrong])
