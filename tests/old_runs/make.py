"""Makes a stored run: a tiny one, stopped at step 10 of 12, and beside it what the code that began it made of it.

    python tests/old_runs/make.py tests/old_runs/format_3.zip

One is made by each change of what a run folder or a checkpoint holds, with the code that makes the change, and stays
for ever: `tests/test_old_runs.py` loads, evaluates and resumes them all. The configuration may change from one to the
next.
"""

import hashlib
import json
import os
import platform
import re
import signal
import sys
import tempfile
import zipfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax

ROOT = Path(__file__).parents[2]
EXPECTED = "expected.json"
STOP, STEPS = 10, 12
SHOWN = 32  # test images whose logits are kept


def config() -> Any:
    """Batch statistics, momentum, averaged weights, lookahead and dropout, and a best checkpoint."""
    from jax_cifar import config as sections
    from jax_cifar.augment import HorizontalFlip, RandomCrop

    return sections.Config(
        name="stored",
        data=sections.DataConfig(name="synthetic", subset=200, val_fraction=0.1),
        augment=(RandomCrop(padding=2), HorizontalFlip()),
        model=sections.ModelConfig(name="tiny_cnn", width=2, dropout=0.1),
        optim=sections.OptimConfig(lr=0.05, nesterov=True, weight_decay=1e-3, ema_decay=0.9, lookahead_every=4),
        schedule=sections.ScheduleConfig(name="cosine", warmup=0.5),
        train=sections.TrainConfig(steps=STEPS, batch_size=30, compilation_cache=False),
        eval=sections.EvalConfig(batch_size=250),
        checkpoint=sections.CheckpointConfig(every=0),
        log=sections.LogConfig(every=2, tensorboard=False, plots=False),
    )


def machine() -> str:
    """Stands for what decides the last bits of a sum beside this code: JAX, and the instructions of the processor."""
    try:
        flags = sorted(set(re.findall(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)))
    except OSError:
        flags = [platform.processor()]
    told = json.dumps([jax.__version__, version("jaxlib"), jax.devices()[0].device_kind, flags])
    return hashlib.sha256(told.encode()).hexdigest()


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every array of the last state."""
    leaves = json.loads((folder / "checkpoints" / str(STEPS) / "manifest.json").read_text())["leaves"]
    return {name: digest for name, (_, _, digest) in leaves.items()}


class Stop:
    """A callback that sends SIGTERM when a step is reached."""

    def on_log(self, record: dict[str, Any]) -> None:
        """Told of each log line."""
        if record["split"] == "train" and record["step"] == STOP:
            os.kill(os.getpid(), signal.SIGTERM)


def main(target: Path) -> None:
    """Train a run whole, and the same again to the stop; keep the second with the figures of both."""
    from jax_cifar import load_run, train
    from jax_cifar.data import load_data
    from jax_cifar.errors import Interrupted

    with tempfile.TemporaryDirectory() as place:
        whole, stopped = Path(place, "whole"), Path(place, "stopped")
        summary = train(config(), whole).summary
        try:
            train(config(), stopped, callbacks=[Stop()])
        except Interrupted as told:
            print(told)
        images = load_data(config().data).test.images[:SHOWN]
        expected = {
            "machine": machine(),
            "logits": load_run(stopped).logits(images).tolist(),
            "test_loss": summary["test_loss"],
            "final": digests(whole),
        }
        (stopped / EXPECTED).write_text(json.dumps(expected))
        with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
            for path in sorted(path for path in stopped.rglob("*") if path.is_file()):
                # The host's name and the command line are nobody's business.
                if path.name != "environment.json":
                    archive.write(path, path.relative_to(stopped))


if __name__ == "__main__":
    # As the tests run: quickly compiled programs round otherwise.
    jax.config.update("jax_disable_most_optimizations", True)
    jax.config.update("jax_platforms", "cpu")
    sys.path.insert(0, str(ROOT))
    main(Path(sys.argv[1]))
