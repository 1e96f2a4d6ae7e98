"""What a sweep found, in words and Markdown tables as they stand in RESULTS.md."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from jax_cifar.lab.space import Axis, Setting
from jax_cifar.lab.statistics import difference, interval
from jax_cifar.lab.sweep import SEEDS, Sweep, brief, short
from jax_cifar.lab.tables import markdown

SHOWN = 10  # trials in the table


def report(found: Sweep) -> str:
    """Everything: the trials, what their figures can tell apart, and the winner on test images."""
    is_matrix = found.grid and len(found.axes) == 2
    parts = [matrix(found) if is_matrix else best_trials(found), count(found)]
    if found.winner:
        parts += [winner_table(found), verdict(found)]
    return "\n\n".join(filter(None, parts))


def best_trials(found: Sweep) -> str:
    """A row for each of the best trials, the best first."""
    head = ["rank", *(short(axis.field) for axis in found.axes), "validation accuracy", "training time"]
    rows = []
    for rank, trial in enumerate(found.ranked[:SHOWN], 1):
        setting = [brief(trial["setting"][axis.field]) for axis in found.axes]
        rows.append([str(rank), *setting, f"{trial['accuracy']:.2%}", f"{trial['seconds']:.3g} s"])
    return markdown(head, rows)


def matrix(found: Sweep) -> str:
    """Validation accuracy by the two fields of a grid: a row for each value of the first."""
    down, right = found.axes
    cells = {(t["setting"][down.field], t["setting"][right.field]): _cell(t) for t in found.trials}
    head = [f"{short(down.field)} \\ {short(right.field)}", *right.values]
    return markdown(head, [[row, *(cells[row, column] for column in right.values)] for row in down.values])


def count(found: Sweep) -> str:
    """How the trials ended, and which of them the validation images cannot tell from the best."""
    best, *others = found.ranked
    margin, near = noise(best), [trial for trial in others if best["accuracy"] - trial["accuracy"] <= noise(best)]
    lines = [f"{len(found.trials)} trials: {_ends(found.trials)}. The best: {words(best['setting'], found.axes)}."]
    if near:
        named = "; ".join(f"{words(t['setting'], found.axes)} ({t['accuracy']:.2%})" for t in near[:3])
        more = f", and {len(near) - 3} more" if len(near) > 3 else ""
        lines.append(
            f"{best['images']:,} validation images cannot tell it from {named}{more}: within {100 * margin:.1f} points."
        )
    return "\n".join([*lines, *_refusals(found.trials, found.axes)])


def noise(best: dict[str, Any]) -> float:
    """Two accuracies of so many images closer than this may be of equal networks: 1.96 standard errors of the gap.

    As if the two were judged by images of their own: those judged by the same differ less by chance. With two right and
    two wrong ones added, as 100 % would otherwise have no error (Agresti and Coull, Approximate is better than "exact"
    for interval estimation of binomial proportions, The American Statistician 52, 1998).
    """
    images = best["images"] + 4
    share = (best["accuracy"] * best["images"] + 2) / images
    return 1.96 * math.sqrt(2 * share * (1 - share) / images)


def winner_table(found: Sweep) -> str:
    """Test accuracy of the winner, and of the configuration itself where it was asked for; why one has none."""
    rows, lines = [], []
    for name, runs in (("the best", found.winner), ("as configured", found.baseline)):
        known = [run for run in runs if run["outcome"] == "finished"]
        if not runs:
            continue
        lost = _ends([run for run in runs if run["outcome"] != "finished"])
        setting = words(found.setting, found.axes) if runs is found.winner else "-"
        cells = _spread(known)
        rows.append([name, setting, ", ".join(filter(None, (str(len(runs)), lost))), *cells])
        lines += _refusals(runs, [SEEDS], f"{name}, ")
    head = ["experiment", "setting", "seeds", "test accuracy", "sd", "95 % interval", "test loss"]
    return "\n".join([markdown(head, rows), *([""] if lines else []), *lines])


def verdict(found: Sweep) -> str:
    """How far the best is from the configuration itself; empty without that."""
    if found.winner == found.baseline:
        return "" if not found.baseline else "The best is the configuration itself."
    pairs = [
        (mine["accuracy"], other["accuracy"])
        for mine, other in zip(found.winner, found.baseline, strict=False)
        if mine["outcome"] == other["outcome"] == "finished"
    ]
    if len(pairs) < 2:
        return ""
    gap = difference([mine for mine, _ in pairs], [other for _, other in pairs], paired=True)
    shown = f"{100 * gap.difference:+.2f} points"
    if gap.known:
        shown += f", {100 * gap.low:+.2f} to {100 * gap.high:+.2f}, p = {gap.p:.2g}"
        shown += "" if gap.decided else ": cannot be told from nothing"
    else:
        shown += " in every pair, so that how far seeds spread is not known"
    return f"The best against the configuration itself, {len(pairs)} seeds in pairs: {shown}."


def _ends(trials: Sequence[dict[str, Any]]) -> str:
    """`4 finished, 2 diverged`."""
    ends = Counter(trial["outcome"] for trial in trials)
    return ", ".join(f"{ends[end]} {end}" for end in ("finished", "pruned", "diverged", "refused") if ends[end])


def _refusals(trials: Sequence[dict[str, Any]], axes: Sequence[Axis], of: str = "") -> list[str]:
    """Of the first few that could not be trained, why."""
    refused = [trial for trial in trials if trial["outcome"] == "refused"]
    return [f"Refused: {of}{words(trial['setting'], axes)}: {trial['reason']}" for trial in refused[:3]]


def words(setting: Setting, axes: Sequence[Axis]) -> str:
    """A setting as `lr 0.02, momentum 0.9`."""
    return ", ".join(f"{short(axis.field)} {brief(setting[axis.field])}" for axis in axes)


def _cell(trial: dict[str, Any]) -> str:
    return trial["outcome"] if trial["accuracy"] is None else f"{trial['accuracy']:.2%}"


def _spread(runs: Sequence[dict[str, Any]]) -> list[str]:
    """Mean accuracy, its spread, its interval, mean loss."""
    if not runs:
        return ["-"] * 4
    of = interval([run["accuracy"] for run in runs])
    losses = [run["test_loss"] for run in runs if run["test_loss"] is not None]
    loss = f"{sum(losses) / len(losses):.4f}" if losses else "-"
    if len(runs) < 2:
        return [f"{of.mean:.2%}", "-", "-", loss]
    return [f"{of.mean:.2%}", f"{of.sd:.2%}", f"{of.low:.2%} to {of.high:.2%}", loss]
