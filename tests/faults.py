"""Write docs/reliability.md: what is done to runs, how often, and what of them was lost.

    python tests/faults.py --out docs/reliability.md                        (make faults)
    python tests/faults.py --out /tmp/some.md --rounds-factor 0.1 --only flipped kill

With --only the other rows stay as they are in FILE.
A row that loses says of each round what was lost; the exit code is then 1.
"""

import platform
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from random import Random
from typing import NamedTuple

import fault_processes as processes
import fault_rows as rows
import resume_matrix
from fault_runs import silence
from fuzzing import fuzz
from resume_matrix import Result, run_matrix
from stamp import stamp

from jax_cifar.backend.threads import cpu_count
from jax_cifar.cli import Parser, run
from jax_cifar.progress import progress
from jax_cifar.telemetry import describe_versions


class Row(NamedTuple):
    """A fault, how often it comes, and what surviving it means. `play(rounds)` lets it come."""

    fault: str
    rounds: int
    survived: str
    play: Callable[[int], Result]
    is_list: bool = False  # the rounds are different things, and all of them are played


def rounds_of(one: rows.Round) -> Callable[[int], Result]:
    """Plays a round so many times, each with a folder and a source of randomness of its own."""

    def play(rounds: int) -> Result:
        lost = []
        for number in range(rounds):
            with tempfile.TemporaryDirectory(prefix="round-") as place, silence():
                try:
                    one(number, Random(number), Path(place))
                except Exception as error:
                    lost.append(f"round {number}: {type(error).__name__}: {error}".partition("\n")[0])
        return Result(rounds, rounds - len(lost), lost)

    return play


def fuzzed(rounds: int) -> Result:
    """Configurations and data that nobody would write."""
    cases = fuzz(rounds, seed=1, train_every=10)
    lost = [f"{case.changes}: {case.wrong}" for case in cases if case.wrong]
    return Result(len(cases), len(cases) - len(lost), lost)


def resumed(rounds: int) -> Result:
    """The matrix, or so much of it; each case is stopped at four moments."""
    with silence():
        return run_matrix(resume_matrix.CASES[: max(1, rounds // len(resume_matrix.MOMENTS))])


def controls(rounds: int) -> Result:
    """A round is survived where the matrix notices what was planted."""
    forgotten = resume_matrix.FORGETTABLE[:rounds]
    lost = []
    for name in forgotten:
        with silence(), resume_matrix.forgetting(name):
            if run_matrix([resume_matrix.Case("cosine", "sgd", "ema")], ["mid-epoch"]).survived:
                lost.append(f"{name} was forgotten and nobody noticed")
    return Result(len(forgotten), len(forgotten) - len(lost), lost)


SOUND = "the same numbers, an earlier checkpoint, or one message; never other numbers, never a traceback"
GOES_ON = "the same command ends with the same bits, log and report as a run that nothing happened to"
IN_TURN = tuple(rows.KINDS)
CASES = len(resume_matrix.CASES) * len(resume_matrix.MOMENTS)
STAGES = len(processes.SIGNALS)

ROWS = [
    Row("kill -9, twice, at random moments of training and saving", 20, GOES_ON, rounds_of(processes.killed)),
    *(Row(f"one flipped bit in {kind}", 50, SOUND, rounds_of(rows.harmed(rows.flip, kind))) for kind in rows.KINDS),
    Row("any of these files cut off", 30, SOUND, rounds_of(rows.harmed(rows.cut, *IN_TURN))),
    Row("any of these files emptied", 20, SOUND, rounds_of(rows.harmed(rows.empty, *IN_TURN))),
    Row("any of these files deleted", 20, SOUND, rounds_of(rows.harmed(rows.delete, *IN_TURN))),
    Row("a disk that fills", 20, f"one message or a warning; once there is space, {GOES_ON}", rounds_of(rows.full)),
    Row(
        "a read-only folder",
        6,
        f"one message, nothing in it changed, evaluated and reported all the same; afterwards {GOES_ON}",
        rounds_of(rows.cannot_be_written),
        is_list=True,
    ),
    Row(
        "a signal at each stage of train, evaluate, export, report",
        STAGES,
        f"exit code 75 within {processes.SOON:.0f} seconds, no half file; where something was saved, {GOES_ON}",
        rounds_of(processes.signal),
        is_list=True,
    ),
    *(
        Row(
            f"{words} processes at one folder",
            rounds,
            "one trains, the others end with one message or find it finished; its bits are those of a run alone",
            rounds_of(processes.together(count)),
        )
        for words, count, rounds in (("two", 2, 5), ("four", 4, 5))
    ),
    Row("a log torn in the middle of a line", 20, GOES_ON, rounds_of(rows.torn)),
    Row("a clock set back, by years and again and again", 10, f"{GOES_ON}; no time below zero", rounds_of(rows.clock)),
    Row("configurations with any value in any field", 300, "trained, or one message that names a field", fuzzed),
    Row("stopped at four moments with every schedule and rule", CASES, "resumed with the same bits", resumed),
    Row(
        "the same with something forgotten: it must fail",
        len(resume_matrix.FORGETTABLE),
        f"the row above fails without {', '.join(resume_matrix.FORGETTABLE)} (which is one off)",
        controls,
        is_list=True,
    ),
]


def cell(text: str) -> str:
    """Words in one cell of a table."""
    return re.sub(r"\s+", " ", text).replace("|", "\\|").replace("<", "&lt;")


def kept(text: str) -> dict[str, Result]:
    """The results that a page has, by fault."""
    found = {}
    for fault, rounds, survived in re.findall(r"^\| (.+) \| (\d+) \| (\d+) \| \d+ \|$", text, re.MULTILINE):
        lost = [line.removeprefix(f"- {fault}: ") for line in text.splitlines() if line.startswith(f"- {fault}: ")]
        found[fault] = Result(int(rounds), int(survived), lost)
    return found


def page(results: Iterable[tuple[Row, Result]], only: Sequence[str] = ()) -> str:
    """The page, as Markdown; `only`: the words of the rows that were played now, where not all were."""
    results = list(results)
    lines = [f"| {row.fault} | {found.rounds} | {found.survived} | {len(found.lost)} |" for row, found in results]
    meanings = [f"| {row.fault} | {cell(row.survived)} |" for row, _ in results]
    lost = [f"- {row.fault}: {cell(each)}" for row, found in results for each in found.lost]
    total, gone = sum(found.rounds for _, found in results), len(lost)
    played = f"the rows of {', '.join(only)}, the others before" if only else "every row"
    disk = "a tmpfs of 2 MB" if rows.mounts() else "a limit of the size of files, as nothing could be mounted"
    parts = [
        "# What happens to runs",
        "Written by `make faults`; do not edit. `make test-all` plays every row, `make test` two of them.",
        f"CPU, {cpu_count()} cores, {platform.system()}, {describe_versions()}. The disk that fills is {disk}.",
        f"{total:,} rounds, {gone:,} lost. Played last ({stamp()}): {played}.",
        "\n".join(["| fault | rounds | survived | lost |", "|-|-|-|-|", *lines]),
        "## What survived means",
        "\n".join(["| fault | a round is survived where |", "|-|-|", *meanings]),
        *(["## What was lost", "\n".join(lost)] if lost else []),
    ]
    return "\n\n".join(parts) + "\n"


def play_all(chosen: Iterable[Row], factor: float) -> list[tuple[Row, Result]]:
    """Play rows one after another, with so many times their rounds; each is told as it ends."""
    rounds = [(row, row.rounds if row.is_list else max(1, round(row.rounds * factor))) for row in chosen]
    results = []
    with progress("rounds", total=sum(count for _, count in rounds)) as bar:
        for row, count in rounds:
            begun = time.monotonic()
            bar.advance(0, note=row.fault)
            found = row.play(count)
            results.append((row, found))
            told = f"{row.fault}: {found.survived} of {found.rounds}, {time.monotonic() - begun:.0f} s"
            bar.print("\n".join([told, *(f"  {each}" for each in found.lost)]))
            bar.advance(count)
    return results


def main(arguments: Sequence[str]) -> None:
    """Parse, play, write."""
    parser = Parser(__doc__)
    parser.add_argument("--out", metavar="FILE", type=Path, required=True, help="Markdown file to write")
    parser.add_argument(
        "--rounds-factor", type=float, default=1.0, help="so many times the rounds, at least one, but of what is a list"
    )
    parser.add_argument("--only", metavar="WORD", nargs="+", default=[], help="the rows that hold one of these words")
    options = parser.parse_args(arguments)
    chosen = [row for row in ROWS if any(word in row.fault for word in options.only or [""])]
    played = {row.fault: found for row, found in play_all(chosen, options.rounds_factor)}
    found = {**kept(options.out.read_text() if options.out.exists() else ""), **played}
    rows_found = [(row, found[row.fault]) for row in ROWS if row.fault in found]
    options.out.write_text(page(rows_found, options.only))
    sys.exit(int(any(one.lost for one in played.values())))


if __name__ == "__main__":
    run(main)
