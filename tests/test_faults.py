"""The fault matrix (`faults`): its quick rows, all of it in `make test-all`; and where something is lost it says so."""

from types import SimpleNamespace

import faults
import pytest
from fault_runs import copied, evaluates, goes_on, stopped
from faults import ROWS, Row, kept, page, play_all, rounds_of
from resume_matrix import Result, forgetting
from stamp import stamp

from jax_cifar import files
from jax_cifar.backend import compiler


@pytest.mark.parametrize("kind", ["the cache of decoded data", "a compiled program"])
def test_a_quick_row_loses_nothing(kind):
    (row,) = [row for row in ROWS if row.fault == f"one flipped bit in {kind}"]
    assert row.play(5) == (5, 5, [])


def test_a_row_loses_where_its_sums_are_not_compared(monkeypatch):
    (row,) = [row for row in ROWS if row.fault == "one flipped bit in a compiled program"]
    same = SimpleNamespace(sha256=lambda content: SimpleNamespace(digest=lambda: b"x" * 32))
    monkeypatch.setattr(compiler, "hashlib", same)
    found = row.play(5)
    assert (found.rounds, found.survived) == (5, 0) and found.lost[4] == "round 4: Lost: another program"


def test_the_page_counts_what_was_lost_and_says_what_it_was(capsys):
    def careless(number, random, place):
        if number % 2:
            raise KeyError("<gone>")

    rows = [
        Row("a stroke of lightning", 30, "it goes on", rounds_of(careless)),
        Row("rain", 4, "", rounds_of(careless)),
    ]
    text = page(play_all(rows, 0.1))
    assert "| a stroke of lightning | 3 | 2 | 1 |\n| rain | 1 | 1 | 0 |\n" in text
    assert f"\n4 rounds, 1 lost. Played last ({stamp()}): every row.\n" in text
    assert "- a stroke of lightning: round 1: KeyError: '&lt;gone>'" in text
    assert "a stroke of lightning: 2 of 3" in capsys.readouterr().out
    lost = ["round 1: KeyError: '&lt;gone>'"]
    assert kept(text) == {"a stroke of lightning": (3, 2, lost), "rain": (1, 1, [])}
    assert page([(row, kept(text)[row.fault]) for row in rows]) == text
    alone = page([(rows[1], Result(1, 1, []))], only=["rain", "snow"])
    assert "What was lost" not in alone and "): the rows of rain, snow, the others before.\n" in alone


@pytest.mark.slow
def test_another_mean_is_lost_where_nobody_looks_at_the_sum(monkeypatch):
    def other_mean(path, random):
        text = path.read_text()
        path.write_text(text.replace('"mean": [\n    0.3', '"mean": [\n    0.4'))
        assert path.read_text() != text

    def harmed(number, random, place):
        folder = copied(place)
        other_mean(folder / "network.json", random)
        evaluates(folder)

    read = rounds_of(harmed)
    assert read(1) == (1, 1, [])
    monkeypatch.setattr(files, "read_record", without_looking)
    assert read(1) == (1, 0, ["round 0: Lost: last, step 12: other numbers"])


def without_looking(path):
    """As `read_record`, but the sum is not compared."""
    values = files.read_json(path)
    values.pop("sha256")
    return values


@pytest.mark.slow
def test_a_resume_that_forgets_something_is_lost():
    resume = rounds_of(lambda number, random, place: goes_on(stopped(place)))
    assert resume(1) == (1, 1, [])
    with forgetting("batch_stats"):
        assert resume(1) == (1, 0, ["round 0: Lost: the state has other bits"])


# test_fuzz.py and test_resume.py are the others.
ELSEWHERE = (faults.fuzzed, faults.resumed, faults.controls)


@pytest.mark.slow
@pytest.mark.parametrize("row", [row for row in ROWS if row.play not in ELSEWHERE], ids=lambda row: row.fault)
def test_a_row_loses_nothing(row):
    ((_, found),) = play_all([row], 1.0)
    assert found.lost == []
