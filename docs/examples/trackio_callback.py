"""A run followed in trackio, whose page is local: `trackio show --project jax_cifar`.

python docs/examples/trackio_callback.py
"""

from pathlib import Path

import trackio

from jax_cifar import Callback, load_config, train
from jax_cifar.config.files import flat, to_dict


class Trackio(Callback):
    """Every log line, its figures named by their part: train/loss, test/accuracy."""

    def on_log(self, record):
        figures = {f"{record['split']}/{name}": x for name, x in record.items() if isinstance(x, float)}
        trackio.log(figures, step=record["step"])


if __name__ == "__main__":
    config = load_config(Path(__file__).with_name("own_network.py"), ["--train.epochs", "2"])
    trackio.init(project="jax_cifar", name=config.name, config=flat(to_dict(config)))
    try:
        train(config, callbacks=[Trackio()])
    finally:
        trackio.finish()
