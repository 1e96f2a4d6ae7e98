"""Write docs/parity.md: what is proved, how closely, and that the proofs can fail.

    python parity_tests/report.py --out docs/parity.md      (make parity)
    python parity_tests/report.py --out docs/parity.md --jax runs/simple-? --torch runs/torch-?.json --export runs/quick

--jax are run folders of scripts/train.py, --torch files of `python -m torch_ref.train --json`, of one recipe and with
several seeds each; --export are run folders that scripts/export.py is run on. Without them the sections that need them
stay as they are in FILE; everything else is measured anew.
"""

import ast
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import test_flagship as judge
import torch
from equivalence import compare_means
from flagship import NETWORKS, QUANTITIES, SCHEDULES, STEPS
from mutants import MUTANTS
from planting import ROOT
from tolerances import TOLERANCES

from jax_cifar.cli import Parser, run
from jax_cifar.progress import Bar, progress
from jax_cifar.telemetry import describe_versions

MARGIN = 2.5  # points of accuracy
ACCURACY, EXPORT = "The same accuracy", "ONNX"  # the sections that need finished runs


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table."""
    first, *others = (f"| {' | '.join(map(str, line))} |" for line in (head, *rows))
    return "\n".join([first, "|" + "-|" * len(head), *others])


def flagship_section(bar: Bar) -> str:
    """The figures of test_flagship.py."""
    rows = []
    for name in NETWORKS:
        found, schedule = judge.compare(name), SCHEDULES[name].name
        cells = [f"{found[quantity]:.1e}" for quantity in QUANTITIES]
        rows.append([f"{name}, {schedule}", *cells])
        bar.advance(note="steps in float64")
    rows.append(["allowed", *(f"{judge.bound(quantity):.0e}" for quantity in QUANTITIES)])
    for field, value, words in (("momentum", 0.11, "running statistics' momentum 0.11"), ("eps", 1.1e-5, "eps 1.1e-5")):
        found = judge.compare("cifar_cnn", lambda net, f=field, v=value: judge.set_norms(net, f, v))
        cells = [f"{found[quantity]:.1e}" for quantity in QUANTITIES]
        rows.append([f"cifar_cnn, fault planted: {words}", *cells])
        bar.advance()
    return f"""## {STEPS} steps in float64

A network of ResNet-34's depth and the CifarCNN, trained in both frameworks from the same weights, crops and flips:
Nesterov SGD with weight decay, clipping, label smoothing, warm-up + cosine or OneCycle with its momentum. The largest
differences over all steps (loss) and at the end, the last two rows with a fault in the PyTorch network:

{table(["", *QUANTITIES], rows)}
"""


def suite_section() -> str:
    """One line for every file of tests: its own first."""
    rows = []
    for path in sorted((ROOT / "parity_tests").glob("test_*.py")):
        first = (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0]
        rows.append([f"`{path.name}`", first])
    return f"## What is compared\n\n{table(['file', ''], rows)}\n"


def tolerance_section() -> str:
    """The table of tolerances.py."""
    rows = [(name, f"{t.limit:g}", f"{t.floor:g}", t.reason) for name, t in TOLERANCES.items()]
    return f"""## How closely

Largest difference allowed, as a share of the largest expected value, or of the floor where the values are smaller:

{table(["", "share", "floor", "why"], rows)}
"""


def mutant_section(bar: Bar) -> str:
    """Every mutant, run by pytest."""
    with tempfile.TemporaryDirectory() as scratch:
        record = Path(scratch) / "record.xml"
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-v",
            "parity_tests/test_mutants.py",
            "-m",
            "mutants",
            f"--junitxml={record}",
        ]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
            for line in process.stdout or ():  # what survives stands in the table
                if "test_mutant_is_killed" in line and ("PASSED" in line or "FAILED" in line):
                    bar.advance(note="faults planted")
        properties = [case.findall("properties/property") for case in ElementTree.parse(record).iter("testcase")]
    results = [{p.attrib["name"]: p.attrib["value"] for p in case} for case in properties]
    killed_by_fault = {result["mutant"]: result["killed"] == "True" for result in results if "mutant" in result}
    rows = [
        [m.fault, f"`{m.file}`", "killed" if killed_by_fault[m.fault] else "**survives**", f"`{m.test}`"]
        for m in MUTANTS
    ]
    killed = sum(killed_by_fault.values())
    return f"""## The tests can fail

Faults that a port makes, planted in a copy of the sources one at a time: {killed} of {len(rows)} are noticed.
`pytest parity_tests -m mutants` runs them again.

{table(["fault", "planted in", "", "noticed by"], rows)}
"""


def accuracy_section(jax_runs: Sequence[Path], torch_runs: Sequence[Path]) -> str:
    """Equivalence of the final test accuracies of finished runs."""
    ours = [100 * json.loads((folder / "summary.json").read_text())["test_accuracy"] for folder in jax_runs]
    theirs = [100 * json.loads(path.read_text())["test_accuracy"] for path in torch_runs]
    names = {json.loads((folder / "summary.json").read_text())["config_name"] for folder in jax_runs}
    names |= {json.loads(path.read_text())["config_name"] for path in torch_runs}
    found = compare_means(ours, theirs)
    rows = []
    for framework, values in (("JAX", ours), ("PyTorch", theirs)):
        each = ", ".join(f"{value:.2f}" for value in values)
        mean, deviation = statistics.mean(values), statistics.stdev(values)
        rows.append([framework, len(values), f"{mean:.2f} %", f"{deviation:.2f}", each])
    verdict = "are equivalent" if found.within(MARGIN) else "are **not** shown to be equivalent"
    return f"""## {ACCURACY}

{", ".join(sorted(names))}, whole: test accuracy of the final weights, with seeds of its own in each framework.

{table(["", "runs", "mean", "sd", "each"], rows)}

The difference of the means is {found.difference:+.2f} points, with 90 % confidence between {found.lower:+.2f} and
{found.upper:+.2f}: within a margin of {MARGIN} points they {verdict} (two one-sided t-tests at 5 %; the margin is
{MARGIN / found.standard_error:.1f} standard errors). Every run of the tests compares a short recipe in the same way.
"""


def export_section(folders: Sequence[Path], bar: Bar) -> str:
    """What scripts/export.py prints for finished runs."""
    outputs = []
    with tempfile.TemporaryDirectory() as scratch:
        for folder in folders:
            command = [sys.executable, str(ROOT / "scripts" / "export.py"), "--workdir", str(folder), "--out"]
            done = subprocess.run([*command, f"{scratch}/model.onnx"], capture_output=True, text=True, check=True)
            outputs.append(done.stdout.replace(f"{scratch}/", "").strip())
            bar.advance(note="exports")
    return (
        f"## {EXPORT}\n\n`scripts/export.py` on finished runs:\n\n"
        + "\n\n".join(f"```\n{o}\n```" for o in outputs)
        + "\n"
    )


def kept_section(page: Path, title: str) -> list[str]:
    """The section of that title as it stands in the page, where it has one."""
    text = page.read_text() if page.exists() else ""
    _, found, rest = text.partition(f"## {title}\n")
    return [f"{found}{rest.partition('## ')[0].rstrip()}\n"] if found else []


def main(arguments: Sequence[str]) -> None:
    """Parse, measure, write."""
    parser = Parser(__doc__)
    parser.add_argument("--out", metavar="FILE", type=Path, required=True, help="Markdown file to write")
    parser.add_argument("--jax", metavar="DIR", type=Path, nargs="+", default=[], help="run folders")
    parser.add_argument(
        "--torch", metavar="FILE", type=Path, nargs="+", default=[], help="JSON files of torch_ref.train"
    )
    parser.add_argument("--export", metavar="DIR", type=Path, nargs="+", default=[], help="run folders to export")
    options = parser.parse_args(arguments)
    runs = options.jax and options.torch
    with progress("parity", total=len(NETWORKS) + 2 + len(options.export) + len(MUTANTS)) as bar:
        sections = [flagship_section(bar), suite_section(), tolerance_section()]
        sections += [accuracy_section(options.jax, options.torch)] if runs else kept_section(options.out, ACCURACY)
        sections += [export_section(options.export, bar)] if options.export else kept_section(options.out, EXPORT)
        sections.append(mutant_section(bar))
    head = f"""# Parity with PyTorch

Written by `make parity`; do not edit. "{ACCURACY}" and "{EXPORT}" are of finished runs.

CPU, {describe_versions()}, torch {torch.__version__}.
"""
    options.out.write_text("\n".join([head, *sections]))


if __name__ == "__main__":
    run(main)
