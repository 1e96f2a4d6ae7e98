"""CIFAR-100 with ResNet-34: SGD 0.1, decay 1e-3, smoothing 0.1, MixUp and CutMix, warm restarts, 400 epochs.

python scripts/train.py --config configs/cifar100_resnet34.py:plain

Variants: plain (crop and flip) and strong (also one of colour jitter, grey and CLAHE, and one of coarse dropout, grid
distortion and elastic transform, each half of the time) with a stem for small images; plain_imagenet and
strong_imagenet with torchvision's stem, as published, which shrinks the images to 8 x 8 pixels at once. fast is for
where there is no GPU: growing images and OneCycle without mixing, 12 epochs of 0.6 of the work: 71.28 % of the test
images (n = 1) in 1.9 hours of training on 2 cores (RESULTS.md).

The published pipeline aims at 70-75 %. It lays CutMix over MixUp and so loses the labels of the first; here each batch
gets one of the two. Test accuracy of all but fast: not measured yet.
"""

from typing import Literal

from jax_cifar.augment import (
    CLAHE,
    CoarseDropout,
    ColorJitter,
    ElasticTransform,
    GridDistortion,
    HorizontalFlip,
    OneOf,
    RandomCrop,
    ToGray,
)
from jax_cifar.config import (
    CheckpointConfig,
    Config,
    DataConfig,
    EvalConfig,
    MixConfig,
    ModelConfig,
    OptimConfig,
    ScheduleConfig,
    TrainConfig,
)

# Told at the start of training, by name; as in RESULTS.md.
REACHES = {
    "cifar100_resnet34_fast": "71.28 % of the test images (n = 1), in 6878 s of training on 2 cores",
}
PLAIN = (RandomCrop(padding=4), HorizontalFlip())
COLOURS = OneOf((ColorJitter(0.2, 0.2, 0.2, 0.1), ToGray(p=1.0), CLAHE(clip_limit=4.0, tile_grid_size=(4, 4), p=1.0)))
HOLES = CoarseDropout(num_holes_range=(1, 4), hole_height_range=(4, 8), hole_width_range=(4, 8), p=1.0)
BENT = ElasticTransform(alpha=20.0, sigma=4.0, padding_mode="reflect", p=1.0)
SHAPES = OneOf((HOLES, GridDistortion(p=1.0), BENT))


def fast() -> Config:
    """70 % in few epochs, most of them of small images."""
    return Config(
        name="cifar100_resnet34_fast",
        data=DataConfig(name="cifar100"),
        augment=PLAIN,
        model=ModelConfig(name="resnet34", norm="batch", stem="cifar"),
        optim=OptimConfig(name="sgd", lr=0.2, momentum=0.9, nesterov=True, weight_decay=5e-4),
        schedule=ScheduleConfig(name="onecycle"),
        train=TrainConfig(
            epochs=12, batch_size=128, label_smoothing=0.1, resolutions=((16, 0.35), (24, 0.35), (32, 0.3))
        ),
        eval=EvalConfig(every=2),
        checkpoint=CheckpointConfig(every=1),
    )


def get_config(variant: Literal["plain", "strong", "plain_imagenet", "strong_imagenet", "fast"] = "plain") -> Config:
    if variant == "fast":
        return fast()
    return Config(
        name=f"cifar100_resnet34_{variant}",
        data=DataConfig(name="cifar100"),
        augment=(*PLAIN, COLOURS, SHAPES) if variant.startswith("strong") else PLAIN,
        mix=MixConfig(mixup_alpha=1.0, cutmix_alpha=1.0),
        model=ModelConfig(name="resnet34", norm="batch", stem="imagenet" if variant.endswith("imagenet") else "cifar"),
        optim=OptimConfig(name="sgd", lr=0.1, momentum=0.9, weight_decay=1e-3),
        schedule=ScheduleConfig(name="warm_restarts", t_0=50, t_mult=2),
        train=TrainConfig(epochs=400, batch_size=128, label_smoothing=0.1),
        checkpoint=CheckpointConfig(every=20),
    )
