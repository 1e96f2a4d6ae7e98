"""Judge a trained network on a whole part of its data set.

python scripts/evaluate.py --workdir runs/first
python scripts/evaluate.py --workdir runs/first --tta mirror --split test --checkpoint best
"""

from collections.abc import Sequence

from jax_cifar.cli import Parser, run


def main(arguments: Sequence[str]) -> None:
    """Parse, load, evaluate, print."""
    parser = Parser(__doc__)
    parser.add_argument("--workdir", metavar="DIR", required=True, help="run folder that scripts/train.py wrote")
    parser.add_argument("--split", choices=["test", "val", "train"], default="test", help="part of the data")
    parser.add_argument(
        "--tta",
        choices=["none", "mirror", "mirror-translate"],
        default="none",
        help="test-time augmentation: average the logits of an image and its mirror image, or of six views",
    )
    parser.add_argument("--checkpoint", choices=["last", "best"], default="last", help="newest, or best by validation")
    options = parser.parse_args(arguments)

    from jax_cifar.run.load import load_trained

    trained = load_trained(options.workdir, options.checkpoint)
    report = trained.evaluate(options.split, options.tta)
    print(f"{trained.config.name}, step {trained.step:,}, {options.split} images, tta {options.tta}\n")
    print(report.table())


if __name__ == "__main__":
    run(main)
