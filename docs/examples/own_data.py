"""A data set of one's own, made in Python: uint8 images [n, height, width, channel] and int32 labels [n].

python docs/examples/own_data.py
"""

import numpy as np

from jax_cifar import load_run, train
from jax_cifar.config import Config, DataConfig, ModelConfig, TrainConfig
from jax_cifar.data import Dataset, Splits


def bars(n, seed):
    """Grey noise of 24 x 24 pixels with a bright bar, upright or lying."""
    rng = np.random.default_rng(seed)
    images, labels = rng.integers(0, 150, (n, 24, 24, 1), np.uint8), rng.integers(0, 2, n, np.int32)
    for image, label, place in zip(images, labels, rng.integers(2, 22, n), strict=True):
        image[(slice(None), place) if label == 0 else (place, slice(None))] += 100
    return Dataset(images, labels)


if __name__ == "__main__":
    splits = Splits("bars", bars(1000, seed=0), bars(200, seed=1), None, ("upright", "lying"))
    config = Config(
        name="own_data",
        data=DataConfig(val_fraction=0.1, label_noise=0.1),
        model=ModelConfig(name="tiny_cnn", width=8),
        train=TrainConfig(epochs=3, batch_size=50),
    )
    result = train(config, splits=splits)
    run = load_run(result.workdir)
    print([run.label_names[k] for k in run.predict(splits.test.images[:5])])
