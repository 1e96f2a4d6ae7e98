"""Look at what training sees: augmentation, convolution filters, a trained network's first layer and all of its layers.

python scripts/visualize.py augment --config configs/cifar100_resnet34.py --out augment.png
python scripts/visualize.py filters --out filters.png
python scripts/visualize.py filters --workdir runs/first --image 7 --out filters.png
python scripts/visualize.py layers --workdir runs/first --out layers.png
"""

from jax_cifar.process import begin

if __name__ == "__main__":
    begin()  # before all that takes long to import

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from jax_cifar.cli import Parser, run
from jax_cifar.errors import ConfigError
from jax_cifar.files import expand

if TYPE_CHECKING:
    from jax_cifar import Run
    from jax_cifar.data import Dataset


CONFIG = "configs/quickstart.py"  # where neither another one is named nor a run
# What shows anything of an option, where not everything does.
SHOWN_BY = {"image": ("augment", "filters"), "columns": ("augment",), "split": ("layers",), "images": ("layers",)}


def make_parser() -> Parser:
    """The options that are no fields of a configuration."""
    parser = Parser(__doc__)
    parser.add_argument("what", choices=["augment", "filters", "layers"], help="what to draw")
    parser.add_argument("--config", metavar="FILE", help=f"config file: data, augmentation (default {CONFIG})")
    parser.add_argument("--workdir", metavar="DIR", help="run: filters show its first layer too, layers all of them")
    parser.add_argument("--image", metavar="N", type=int, default=0, help="first image of the data set to show")
    parser.add_argument("--columns", metavar="N", type=int, default=8, help="augment: draws beside each image")
    parser.add_argument("--split", choices=["train", "val", "test"], default="train", help="layers: part of the images")
    parser.add_argument("--images", metavar="N", type=int, default=1000, help="layers: how many images they are shown")
    parser.add_argument("--data.dir", dest="data_dir", metavar="DIR", help="where the run's data set lies now")
    parser.add_argument("--trust-code", action="store_true", help="run the network's own code that the folder recorded")
    parser.add_argument("--out", metavar="FILE.png", type=expand, required=True, help="picture to write")
    return parser


def check_options(parser: Parser, options: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Raise `ConfigError` for a place that cannot be, and for what would be ignored."""
    if options.out.suffix != ".png" or not options.out.parent.is_dir():
        raise ConfigError(f"--out {options.out} must be a .png file in a folder that exists.")
    if options.what == "layers" and not options.workdir:
        parser.error("layers are those of a run: say --workdir DIR")
    given = [*(["--config", options.config] if options.config else []), *overrides]
    if options.workdir and given:
        parser.error(f"{' '.join(given)}: with --workdir the run's own configuration holds")
    if options.trust_code and not options.workdir:
        parser.error("--trust-code does nothing without --workdir")
    for name, shows in SHOWN_BY.items():
        if options.what not in shows and getattr(options, name) != parser.get_default(name):
            parser.error(f"--{name} does nothing with {options.what}, only with {' and '.join(shows)}")


def main(arguments: Sequence[str]) -> None:
    """Parse, compute, draw."""
    parser = make_parser()
    options, overrides = parser.parse_known_args(arguments)
    check_options(parser, options, overrides)

    from jax_cifar import load_config
    from jax_cifar.data import load_data
    from jax_cifar.errors import check
    from jax_cifar.lab.pictures import augmentation_rows, filter_panels, first_layer_panels
    from jax_cifar.run.load import load_run
    from jax_cifar.telemetry.images import draw_rows, draw_sections

    trained, data_dir = None, options.data_dir
    if options.what == "layers":
        looked_at = load_run(options.workdir, data_dir=data_dir, trust_code=options.trust_code)
        print(look_at_layers(looked_at, looked_at.part(options.split, data_dir), options), options.out, sep="\n")
        return
    if options.workdir:
        trained = load_run(options.workdir, data_dir=data_dir, trust_code=options.trust_code)
        config, splits = trained.config, trained.splits(data_dir)
    else:
        config = load_config(options.config or CONFIG, [*overrides, *(["--data.dir", data_dir] if data_dir else [])])
        splits = load_data(config.data)
    images = splits.train.images
    check(0 <= options.image < len(images), "--image", options.image, f"there are {len(images):,} training images")
    check(1 <= options.columns <= 100, "--columns", options.columns, "it must be from 1 to 100")
    if options.what == "augment":
        rows = augmentation_rows(config, images[options.image : options.image + 32], options.columns)
        draw_rows(rows, options.out, f"{config.name}, {splits.name}")
    else:
        image = images[options.image]
        sections = [("One filter for vertical edges: kernel size, stride and padding", filter_panels(image))]
        if trained:
            filters, maps = first_layer_panels(trained, image)
            sections += [(f"First layer of {config.name}: filters", filters), ("and their feature maps", maps)]
        draw_sections(sections, options.out)
    print(options.out)


def look_at_layers(trained: "Run", dataset: "Dataset", options: argparse.Namespace) -> str:
    """Draw every layer of a run; returns the table of them."""
    from jax_cifar.errors import check
    from jax_cifar.lab.layers import bars, layers, table
    from jax_cifar.telemetry.layers import draw_layers

    check(options.images >= 1, "--images", options.images, "it must be at least 1")
    found, shown = layers(trained, dataset, options.images), min(options.images, len(dataset))
    name, batch = trained.config.name, min(trained.config.train.batch_size, len(dataset))
    title = f"{name}, step {trained.step:,}: {shown:,} {options.split} images, gradients of {batch:,}"
    draw_layers(bars(found), options.out, title)
    return table(found)


if __name__ == "__main__":
    run(main)
