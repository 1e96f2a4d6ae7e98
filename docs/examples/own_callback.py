"""A callback of one's own, told of each log line, each epoch and the end.

python docs/examples/own_callback.py
"""

from pathlib import Path

from jax_cifar import Callback, load_config, train


class Best(Callback):
    """Keeps the best accuracy seen, and tells at the end."""

    def __init__(self):
        self.accuracy, self.epoch = 0.0, 0.0

    def on_epoch(self, record):
        if record["eval_accuracy"] is not None and record["eval_accuracy"] > self.accuracy:
            self.accuracy, self.epoch = record["eval_accuracy"], record["epoch"]

    def on_end(self, result):
        print(f"best on {result.summary['dataset']}: {self.accuracy:.2%} after epoch {self.epoch:g}")


if __name__ == "__main__":
    config = load_config(Path(__file__).with_name("own_network.py"), ["--train.epochs", "2"])
    train(config, callbacks=[Best()])
