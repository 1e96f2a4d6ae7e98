"""Trials in a store: as many as asked for, each finished once, whoever dies or is at work at the same time."""

import os
import shutil
import time
from collections import Counter

import pytest

from jax_cifar.errors import ConfigError
from jax_cifar.lab.space import Axis
from jax_cifar.lab.trials import Store, Trials, importance

LR = Axis("optim.lr", "log", 1e-3, 1.0)
FEW = Axis("optim.momentum", "", values=("0.5", "0.9", "0.95"))
CELLS = [{"optim.momentum": value} for value in FEW.values]


@pytest.fixture(scope="module")
def empty(tmp_path_factory):
    """A store without a study: its tables take longer to make than all that is done to them here."""
    folder = tmp_path_factory.mktemp("empty")
    with Store(folder):
        return folder / "sweep.db"


@pytest.fixture(autouse=True)
def tables(empty, tmp_path):
    shutil.copy(empty, tmp_path)


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path) as one:
        yield one


@pytest.fixture
def dead(tmp_path):
    """A store whose process is killed: it leaves its file, and the system has lifted its lock."""
    one = Store(tmp_path)
    one.__enter__()
    yield one
    one._stop_signing()
    one._close()


def kill(store):
    os.close(store._held)


def claim_one(trials, total):
    claim = trials.claim(total)
    assert claim is not None
    return claim


def grid(store):
    return Trials(store, "grid", [FEW], CELLS)


def finish_all(trials, total, value=0.5):
    claims = []
    while (claim := trials.claim(total)) is not None:
        trials.finish(claim, value, {"outcome": "finished"})
        claims.append(claim)
    return claims


def states(trials):
    return Counter(trial.state.name for trial in trials.study.get_trials())


def test_every_cell_is_claimed_once_and_then_none_is_left(store):
    trials = grid(store)
    claims = finish_all(trials, 3)
    assert [claim.setting for claim in claims] == CELLS
    assert sorted(trials.finished(3)) == [0, 1, 2] and states(trials) == {"COMPLETE": 3}


def test_what_another_living_process_has_begun_is_left_to_it(store, tmp_path):
    with Store(tmp_path) as other:
        mine, theirs = grid(store), grid(other)
        first = claim_one(mine, 3)
        assert [claim.index for claim in finish_all(theirs, 3)] == [1, 2]
        assert len(theirs.finished(3)) == 2
        mine.finish(first, 0.5, {"outcome": "finished"})
        assert len(theirs.finished(3)) == 3 and states(mine) == {"COMPLETE": 3}


def test_the_trial_of_a_dead_process_has_failed_and_its_setting_is_trained_again(dead, store):
    lost = claim_one(Trials(dead, "search", [LR]), 2)
    kill(dead)
    trials = Trials(store, "search", [LR])
    claims = finish_all(trials, 2)
    assert [claim.index for claim in claims] == [0, 1] and claims[0].setting == lost.setting
    assert len(trials.finished(2)) == 2 and states(trials) == {"COMPLETE": 2, "FAIL": 1}


def test_a_result_that_comes_after_its_process_was_taken_for_dead_is_not_counted(dead, store):
    theirs = Trials(dead, "search", [LR])
    late = claim_one(theirs, 1)
    kill(dead)
    trials = Trials(store, "search", [LR])
    finish_all(trials, 1, value=0.25)
    theirs.finish(late, 0.75, {"outcome": "finished"})
    assert [trial.value for trial in trials.finished(1).values()] == [0.25]
    assert states(trials) == {"COMPLETE": 1, "FAIL": 1}


def test_of_two_begun_for_the_same_attempt_the_second_is_void(store, tmp_path):
    trials = grid(store)
    notes = {"index": 0, "attempt": 0, "worker": store.worker}
    for _ in range(2):  # by processes that did not see each other
        trials.study.enqueue_trial(CELLS[0], user_attrs=notes)
    assert [claim.index for claim in finish_all(trials, 3)] == [0, 1, 2]
    assert states(trials) == {"COMPLETE": 3, "FAIL": 1}
    assert trials.study.get_trials()[0].state.name == "COMPLETE"


@pytest.mark.parametrize(("silent", "alive"), [(0, True), (300, True), (3600, False)])
def test_a_process_of_another_machine_lives_by_the_signs_that_it_gives(store, silent, alive):
    trials = grid(store)
    elsewhere = {"host": "elsewhere-1", "lock": "/there/process-1.lock"}
    claim_one(trials, 3).trial.set_user_attr("worker", elsewhere)
    trials.study.set_user_attr("/there/process-1.lock", time.time() - silent)
    assert [claim.index for claim in finish_all(trials, 3)] == ([1, 2] if alive else [0, 1, 2])


def test_a_process_gives_a_sign_of_life(store):
    trials, until = grid(store), time.monotonic() + 10
    while store.worker["lock"] not in trials.study.user_attrs and time.monotonic() < until:
        time.sleep(0.01)
    assert abs(trials.study.user_attrs[store.worker["lock"]] - time.time()) < 60


def test_more_trials_may_be_asked_for_later_and_fewer(store):
    trials = Trials(store, "search", [LR])
    assert len(finish_all(trials, 2)) == 2
    assert len(finish_all(trials, 4)) == 2
    assert sorted(trials.finished(3)) == [0, 1, 2]


def test_what_is_proposed_does_not_depend_on_when_a_process_ended(store, tmp_path):
    whole = finish_all(Trials(store, "whole", [LR], seed=3), 4)
    parts = [finish_all(Trials(store, "parts", [LR], seed=3), total)[-1] for total in (1, 2, 3, 4)]
    assert [claim.setting for claim in whole] == [claim.setting for claim in parts]
    others = finish_all(Trials(store, "other", [LR], seed=4), 4)
    assert len({claim.setting["optim.lr"] for claim in [*whole, *others]}) == 8


def test_a_trial_worse_than_the_median_is_given_up_and_counts_as_one(store):
    trials = Trials(store, "search", [LR], pruning="median")
    for accuracy in (0.5, 0.6, 0.7, 0.8, 0.9):
        claim = claim_one(trials, 6)
        assert not trials.report(claim, 50, accuracy)
        trials.finish(claim, accuracy, {"outcome": "finished"})
    last = claim_one(trials, 6)
    assert not trials.report(last, 20, 0.1), "judged in the first third"
    assert trials.report(last, 50, 0.6)
    trials.finish(last, None, {"outcome": "pruned"})
    assert trials.claim(6) is None and len(trials.finished(6)) == 6


def test_a_field_that_changes_nothing_has_no_importance(store):
    trials = Trials(store, "search", [LR, FEW])
    for _ in range(12):
        claim = claim_one(trials, 12)
        trials.finish(claim, -abs(float(claim.setting["optim.lr"]) - 0.1), {"outcome": "finished"})
    shares = importance(trials.study)
    assert shares["optim.lr"] > 0.9 and shares["optim.momentum"] < 0.1
    assert importance(Trials(store, "nothing", [LR]).study) == {}


def test_a_store_that_is_not_there_is_named_without_its_password(tmp_path):
    with pytest.raises(ConfigError, match=r"--storage sqlite:////nowhere/at/all\.db cannot be opened") as refused:
        Store(tmp_path, "sqlite:////nowhere/at/all.db").__enter__()
    assert "journal:FILE" in str(refused.value)
    with pytest.raises(ConfigError, match=r"postgresql\+nothing://me:\*\*\*@here/x") as refused:
        Store(tmp_path, "postgresql+nothing://me:secret@here/x").__enter__()
    assert "secret" not in str(refused.value)


def test_a_store_lies_in_its_folder_whatever_that_is_called(empty, tmp_path):
    folder = tmp_path / "100 %20? #1 {a}=b"
    folder.mkdir()
    shutil.copy(empty, folder)
    with Store(folder) as store:
        assert len(finish_all(grid(store), 3)) == 3
    assert {path.name for path in tmp_path.iterdir()} == {folder.name, "sweep.db"}
    assert {path.name for path in folder.iterdir()} == {"sweep.db", "turn.lock"}
    with Store(folder) as store:
        assert len(grid(store).finished(3)) == 3


def test_a_journal_is_a_store_too(tmp_path):
    with Store(tmp_path, f"journal:{tmp_path / 'log'}") as store:
        assert len(finish_all(grid(store), 3)) == 3
