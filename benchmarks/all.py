"""Every figure of RESULTS.md anew: its commands, section by section, and what each block of them prints.

python scripts/benchmark.py all --list
python scripts/benchmark.py all --json all.json
python scripts/benchmark.py all --json all.json --sections "Speed on a CPU" "Augmentation"
python scripts/benchmark.py all --quick

That takes hours. A run that lies finished in runs/ is not trained again, and a block that FILE has whole is not run
again, so that what was cut off goes on with the same command. Sections that are "on a GPU" by their title are left out
where there is none. With --quick the benchmarks alone are run, each with its own --quick.
"""

import argparse
import re
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.processes import ROOT, shell
from benchmarks.tables import read_parts
from jax_cifar.errors import ConfigError
from jax_cifar.lab.tables import markdown
from jax_cifar.progress import print_above

PAGE = ROOT / "RESULTS.md"
BENCHMARK = "python scripts/benchmark.py "
QUICK: dict[str, Any] = {}  # handed on


@dataclass(frozen=True)
class Block:
    """One block of commands, and what became of it."""

    section: str
    commands: str
    complete: bool | None = None  # None: it is only listed
    seconds: float = 0.0
    printed: str = ""  # to stdout
    said: str = ""  # the last line of one that failed

    def __str__(self) -> str:
        return f"{self.section}, {self.seconds:.0f} s{'' if self.complete else f', NOT complete: {self.said}'}"


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of this suite."""
    parser.add_argument("--sections", nargs="+", metavar="TITLE", help="of RESULTS.md (default: all)")
    parser.add_argument("--list", action="store_true", help="show sections and commands, and run nothing")


def blocks(page: Path) -> list[Block]:
    """The blocks of commands of a page, with the title of the section that each stands in."""
    found = []
    for section in re.split(r"^## ", page.read_text(), flags=re.MULTILINE)[1:]:
        title = section.partition("\n")[0]
        fenced = re.findall(r"^```(\w*)\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
        found += [Block(title, text) for language, text in fenced if not language]
    return found


def chosen(options: argparse.Namespace) -> list[Block]:
    """The blocks to run; raises `ConfigError` for a section that there is not."""
    known = blocks(PAGE)
    titles = list(dict.fromkeys(block.section for block in known))
    if wrong := [title for title in options.sections or () if title not in titles]:
        raise ConfigError(f'--sections "{wrong[0]}" is not known: RESULTS.md has commands in {", ".join(titles)}')
    has_gpu = shutil.which("nvidia-smi") is not None
    wanted = options.sections or [title for title in titles if has_gpu or not re.search(r"\bon a GPU\b", title, re.I)]
    taken = [block for block in known if block.section in wanted]
    if not options.quick:
        return taken
    once: dict[str, Block] = {}
    for block in filter(None, map(quick, taken)):
        once.setdefault(block.commands, block)  # the page has a suite several times, with other options
    return list(once.values())


def quick(block: Block) -> Block | None:
    """Its benchmarks, each with --quick; None where it has none that is for itself."""
    lines = [line for line in block.commands.splitlines() if line.startswith(BENCHMARK) and "--workdir" not in line]
    suites = [line.removeprefix(BENCHMARK).split()[0] for line in lines]
    return Block(block.section, "".join(f"{BENCHMARK}{suite} --quick\n" for suite in suites)) if suites else None


def cases(options: argparse.Namespace) -> int:
    """How many cases `measure` will yield."""
    return 0 if options.list else len(kept(options)) + len(chosen(options))


def kept(options: argparse.Namespace) -> list[Block]:
    """The blocks that FILE has whole and that are not asked for now: they stay in it."""
    asked = {block.commands for block in chosen(options)}
    return [block for block in done(options).values() if block.commands not in asked]


def done(options: argparse.Namespace) -> dict[str, Block]:
    """The blocks that FILE has whole, by their commands."""
    return {block.commands: block for block in read_parts(options.json, "blocks", Block) if block.complete}


def measure(options: argparse.Namespace) -> Iterator[Block]:
    """Run every block that FILE does not have yet; one that fails is told, and the others follow."""
    if options.list:
        print(table(chosen(options)))
        return
    found = done(options)
    yield from kept(options)
    for block in chosen(options):
        if block.commands in found:
            yield found[block.commands]
            continue
        print_above(f"{block.section}:\n{block.commands}", sys.stderr)
        started = time.monotonic()
        code, printed, said = shell(block.commands)
        yield Block(block.section, block.commands, code == 0, round(time.monotonic() - started, 1), printed, said)


def as_json(suite: str, parts: Sequence[Block]) -> dict[str, Any]:
    """Every block, and on what it ran."""
    from benchmarks import tables

    head = tables.as_json(suite, [])
    head.pop("cases")
    return {**head, "blocks": [vars(part) for part in parts]}


def table(parts: Sequence[Block]) -> str:
    """What was printed, under the titles of RESULTS.md, and how each block ended."""
    lines: list[str] = []
    for i, part in enumerate(parts):
        lines += [f"## {part.section}"] if i == 0 or parts[i - 1].section != part.section else []
        lines += [f"```\n{part.commands}```", *filter(None, [part.printed.strip()])]
    if all(part.complete is None for part in parts):
        return "\n\n".join(lines)
    rows = [
        [
            part.section,
            part.commands.splitlines()[-1],
            "yes" if part.complete else "no",
            f"{part.seconds:.0f} s",
            part.said,
        ]
        for part in parts
    ]
    return "\n\n".join([*lines, markdown(["section", "block that ends with", "complete", "took", ""], rows)])
