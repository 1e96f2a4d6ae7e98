"""Strict arithmetic for every test, one thread for PyTorch, and the table of mutants at the end."""

import strictness  # noqa: F401
import typecheck  # noqa: F401
from fixtures import (  # noqa: F401
    WITHOUT_TORCH,
    pytest_collection_finish,
    pytest_make_collect_report,
    quick_compile,
    x64,
)

if not WITHOUT_TORCH:
    import torch

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
