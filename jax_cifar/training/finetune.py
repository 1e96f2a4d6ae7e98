"""From a trained run to a smaller one: its filters of smallest norm removed, the rest trained on for a few epochs.

The smaller network is a run like any other, made by `jax_cifar.training.loop.train`, which also resumes it.
"""

import dataclasses
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jax_cifar.compress.prune import Scope, choose, narrowed, remove
from jax_cifar.config import Config, ModelConfig, ScheduleConfig
from jax_cifar.config.files import apply_overrides
from jax_cifar.config.revive import has_placeholders, revive_all
from jax_cifar.config.source import trusted_namespaces
from jax_cifar.data import Dataset, Splits, load_data
from jax_cifar.deploy.agreement import require_agreement
from jax_cifar.deploy.source import Source
from jax_cifar.deploy.verify import RUN, logits_elsewhere
from jax_cifar.errors import ConfigError, DataError, ExportError, Interrupted, UserError, check, print_warning
from jax_cifar.files import expand
from jax_cifar.run.folder import RunFolder, read_config
from jax_cifar.run.load import Run, load_run
from jax_cifar.signals import retold
from jax_cifar.training.loop import train
from jax_cifar.training.session import make_network

Schedule = Literal["one-shot", "iterative"]

ITERATIONS = 3  # of the iterative schedule
STAGES = "stages"  # folder, in the new run's, of the runs in between
READ_BACK = 1000  # test images that another process predicts with the new run
# What the rooms below call things, and what they are here, where nothing is gone on with but by the same command.
_WORDS = {
    r" To train its weights further, .*": "",
    r"Go on without --init-from, or choose another --workdir": "Choose another --out",
    r"--workdir": "--out",
    r"^amount\b": "--prune",
    r"^norm\b": "--norm",
}
LR_FACTOR = 0.1  # fine-tuning starts at this share of the run's own peak rate


def compress(
    workdir: str | Path,
    amount: float,
    out: str | Path,
    *,
    finetune_epochs: float = 5.0,
    schedule: Schedule = "one-shot",
    scope: Scope = "layer",
    order: float = 2.0,
    which: Literal["last", "best"] = "last",
    overrides: Sequence[str] = (),
    splits: Splits | None = None,
    trust_code: bool = False,
) -> dict[str, Run]:
    """Prune a trained run, fine-tune what is left, and leave that in `out` as a run of its own.

    `one-shot` removes everything at once. `iterative` does so in three steps with fine-tuning after each: the share
    that stays shrinks by the same factor each time, and the epochs are divided evenly. Its first two networks are left
    in `out`/stages. The same call goes on where one was interrupted.

    Fine-tuning is the run's own recipe with `finetune_recipe`'s rates; a run that averaged gives its averaged weights.

    Args:
        workdir: folder of a run of a network that ships.
        amount, scope, order: how many filters go, and which, as `jax_cifar.compress.prune.choose` has it.
        out: folder of the new run.
        finetune_epochs: in all.
        schedule: all at once, or in steps.
        which: the newest checkpoint, or the best by validation accuracy.
        overrides: fields of the fine-tuning's configuration, `["--optim.lr", "0.01"]`.
        splits: the images, where the run was trained on some given in Python.
        trust_code: run the transforms, rules and losses of its own that the folder recorded.

    Returns:
        The networks in order of their making, "as trained" first, the fine-tuned one last, read back from `out`.

    Raises:
        ConfigError, DataError, CheckpointError: what the user can put right.
        ExportError: another process that reads `out` gets other logits for real images.
        Interrupted: a signal came while fine-tuning, and the state is saved.
    """
    _require_prunable(read_config(expand(workdir)).model)
    trained = load_run(workdir, which, trust_code=trust_code)
    if splits is None and trained.data_name is None:
        raise DataError(
            f"{workdir} was trained on images given in Python, which it does not keep: give them as splits."
        )
    steps = ITERATIONS if schedule == "iterative" else 1
    recipe = finetune_recipe(_with_own_code(trained, trust_code), finetune_epochs / steps, overrides)
    data = load_data(recipe.data) if splits is None else splits
    trained.require_classes(data.label_names, data.source)
    if splits is None and recipe.data == trained.config.data:
        trained.require_same_images("test", data.test, data)  # as evaluating it would, but before the fine-tuning
    with _told_of(out):
        kept = choose(trained.config.model, trained.variables, amount, scope, order)
    original = {layer: len(stays) for layer, stays in kept.items()}
    _check_place(out, recipe)
    runs, run = {"as trained": trained}, trained
    for step in range(1, steps + 1):
        # Of the original network, so that the last step has removed exactly what one step would have.
        share = amount if step == steps else 1 - (1 - amount) ** (step / steps)
        kept = choose(run.config.model, run.variables, share, scope, order, original)
        pruned = _removed(run, kept)
        place = expand(out) if step == steps else expand(out) / STAGES / str(step)
        with _told_of(out):
            config = dataclasses.replace(recipe, model=pruned.config.model)
            trained_on = train(config, place, splits=splits, init_from=pruned.variables)
        run = load_run(place)
        if step == steps:
            _require_same_elsewhere(run, trained_on.state.eval_variables, data.test)
        runs |= {f"pruned by {share:.3g}": pruned, f"pruned by {share:.3g}, fine-tuned": run}
    return runs


def finetune_recipe(config: Config, epochs: float, overrides: Sequence[str]) -> Config:
    """The configuration that a pruned run is fine-tuned with, but for its network.

    The run's own (data, augmentation, batch, rule, decay, loss, seed) with a fresh schedule: a tenth of its peak rate,
    falling to 0 along a cosine. That of a run which was pruned before is a tenth already, and stays. `overrides` have
    the last word.
    """
    check(epochs > 0, "--finetune-epochs", epochs, "a network that lost filters has to be trained on: more than 0")
    factor = 1.0 if config.model.channels else LR_FACTOR
    rates = {"lr": config.optim.lr * factor}
    if config.optim.name == "muon":
        rates["aux_lr"] = config.optim.aux_lr * factor
    recipe = dataclasses.replace(
        config,
        name=f"{config.name.removesuffix('_pruned')}_pruned",
        optim=dataclasses.replace(config.optim, **rates),
        schedule=ScheduleConfig(name="cosine"),
        train=dataclasses.replace(config.train, epochs=epochs, steps=None),
    )
    return apply_overrides(recipe, overrides)


def _require_prunable(network: Any) -> None:
    if not isinstance(network, ModelConfig):
        raise ConfigError(
            f"{network} is a network of one's own, and which of its layers read one another is not known: only networks"
            " that ship can be pruned. Train a narrower one instead."
        )


def _with_own_code(run: Run, trust_code: bool) -> Config:
    """The run's configuration with its own transforms, rules and losses, which training on needs."""
    if not has_placeholders(run.config):
        return run.config
    return revive_all(run.config, trusted_namespaces(run.folder, trust_code))


def _removed(run: Run, kept: Any) -> Run:
    """The run with the network that is left."""
    config = dataclasses.replace(run.config, model=narrowed(run.config.model, kept))
    variables = remove(run.config.model, run.variables, kept)
    return dataclasses.replace(run, config=config, network=make_network(config, run.network.spec), variables=variables)


def _require_same_elsewhere(run: Run, variables: Any, test: Dataset) -> None:
    """Have another process read the folder of a run, and compare its logits with those of the weights in memory."""
    test = test.take(np.arange(min(READ_BACK, len(test))))
    here = dataclasses.replace(load_run(run.folder, dtype="float32"), variables=variables)
    expected = Source(here, here, test).expected
    try:
        for logits in logits_elsewhere(run.folder, RUN, test.images).values():
            require_agreement(logits, expected)
    except ExportError as error:
        raise ExportError(f"{run.folder}: {error}") from None


def _check_place(out: str | Path, recipe: Config) -> None:
    """Refuse before an hour of fine-tuning what only the last step's run would: a folder that is not this run's."""
    folder = expand(out)
    held = (folder / "config.json").exists()
    # Of the network only the last step knows the widths.
    config = dataclasses.replace(recipe, model=read_config(folder).model) if held else recipe
    with _told_of(out), RunFolder(config, out, print_warning):
        pass


@contextmanager
def _told_of(out: str | Path) -> Iterator[None]:
    """What is refused or interrupted, told in this command's own terms: its folder is --out, its share --prune."""
    try:
        with retold(_same_again):
            yield
    except Interrupted as stopped:
        raise Interrupted(_same_again(str(stopped))) from None
    except UserError as error:
        text = str(error)
        for theirs, ours in _WORDS.items():
            text = re.sub(theirs, ours, text)
        raise type(error)(text) from None


def _same_again(text: str) -> str:
    return f"{text.partition(' To go on')[0]} To go on, run the same command again."
