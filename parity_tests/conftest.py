"""Strict arithmetic for every test, one thread for PyTorch, and the table of mutants at the end."""

import strictness  # noqa: F401
import torch

# The test workers share the cores.
torch.set_num_threads(1)


def pytest_terminal_summary(terminalreporter, config) -> None:
    """What became of the mutants: the table where they were asked for, else one line."""
    reports = [report for kind in ("passed", "failed") for report in terminalreporter.getreports(kind)]
    rows = [dict(report.user_properties)["mutant"] for report in reports if dict(report.user_properties).get("mutant")]
    if not rows:
        return
    killed = sum(message is not None for *_, message in rows)
    if config.option.markexpr == "mutants":
        width = max(len(fault) for fault, *_ in rows)
        terminalreporter.section("mutants")
        for fault, test, message in sorted(rows):
            terminalreporter.write_line(f"{fault:{width}}  {'killed by' if message else 'SURVIVES '}  {test}")
    terminalreporter.write_line(f"mutants: {killed} of {len(rows)} killed")
