"""A run followed in MLflow: `mlflow ui`, or a server that MLFLOW_TRACKING_URI names.

python docs/examples/mlflow_callback.py
"""

from pathlib import Path

import mlflow

from jax_cifar import Callback, load_config, train
from jax_cifar.config.files import flat, to_dict


class MLflow(Callback):
    """Every log line, its figures named by their part, and the pictures at the end."""

    def on_log(self, record):
        figures = {f"{record['split']}/{name}": x for name, x in record.items() if isinstance(x, float)}
        mlflow.log_metrics(figures, step=record["step"])

    def on_end(self, result):
        mlflow.log_artifacts(result.workdir / "plots", "plots")


if __name__ == "__main__":
    config = load_config(Path(__file__).with_name("own_network.py"), ["--train.epochs", "2"])
    mlflow.set_experiment("jax_cifar")
    with mlflow.start_run(run_name=config.name):
        mlflow.log_params(flat(to_dict(config)))
        train(config, callbacks=[MLflow()])
