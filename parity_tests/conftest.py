"""Strict arithmetic for every test, one thread for PyTorch, and the table of mutants at the end."""

import strictness  # noqa: F401
import torch
import typecheck  # noqa: F401
from fixtures import pytest_collection_finish, quick_compile, x64  # noqa: F401

# The test workers share the cores.
torch.set_num_threads(1)


def pytest_terminal_summary(terminalreporter, config) -> None:
    """What became of the mutants: the table where they were asked for, else one line."""
    reports = [report for kind in ("passed", "failed") for report in terminalreporter.getreports(kind)]
    mutants = [properties for report in reports if "mutant" in (properties := dict(report.user_properties))]
    if not mutants:
        return
    if config.option.markexpr == "mutants":
        width = max(len(mutant["mutant"]) for mutant in mutants)
        terminalreporter.section("mutants")
        for mutant in sorted(mutants, key=lambda mutant: mutant["mutant"]):
            outcome = "killed by" if mutant["killed"] else "SURVIVES "
            terminalreporter.write_line(f"{mutant['mutant']:{width}}  {outcome}  {mutant['test']}")
    killed = sum(mutant["killed"] for mutant in mutants)
    terminalreporter.write_line(f"mutants: {killed} of {len(mutants)} killed")
