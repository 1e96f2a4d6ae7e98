"""The tests of this folder can fail: every planted fault of mutants.py is noticed."""

import pytest
from mutants import MUTANTS
from planting import ROOT, run_mutant

pytestmark = pytest.mark.mutants


# The first is the canary: every run of the tests sees that planting works.


@pytest.mark.slow
@pytest.mark.parametrize("mutant", [pytest.param(mutant, id=mutant.fault) for mutant in MUTANTS])
def test_mutant_is_killed(mutant, tmp_path, record_property):
    killed_by = run_mutant(mutant, tmp_path)
    record_property("mutant", mutant.fault)
    record_property("test", mutant.test)
    record_property("killed", killed_by is not None)
    assert killed_by is not None, f"{mutant.test} passes with this fault in {mutant.file}: {mutant.fault}"


def test_every_fault_has_a_name_of_its_own():
    faults = [mutant.fault for mutant in MUTANTS]
    assert len(set(faults)) == len(faults)


def test_what_the_faults_replace_is_still_there():
    assert [mutant.fault for mutant in MUTANTS if (ROOT / mutant.file).read_text().count(mutant.old) != 1] == []


@pytest.mark.slow
def test_a_change_that_changes_nothing_survives(tmp_path):
    harmless = MUTANTS[0]._replace(new=MUTANTS[0].old + "  # nothing")
    assert run_mutant(harmless, tmp_path) is None


def test_a_mutant_whose_text_is_gone_is_no_kill(tmp_path):
    with pytest.raises(RuntimeError, match="0 times, not once"):
        run_mutant(MUTANTS[0]._replace(old="nowhere to be found"), tmp_path)


@pytest.mark.slow
def test_a_test_that_is_not_there_is_no_kill(tmp_path):
    with pytest.raises(RuntimeError, match="could not be run"):
        run_mutant(MUTANTS[0]._replace(test="test_layers.py::test_nothing"), tmp_path)
