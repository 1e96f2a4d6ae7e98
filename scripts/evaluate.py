"""Judge a trained network on a whole part of its data set, or on images of one's own.

python scripts/evaluate.py --workdir runs/first
python scripts/evaluate.py --workdir runs/first --split val --checkpoint best
python scripts/evaluate.py --workdir runs/first --split photos.npz
"""

from jax_cifar.process import begin

if __name__ == "__main__":
    begin()  # before all that takes long to import

import sys
from collections.abc import Sequence

from jax_cifar.cli import Parser, run

PARTS = ("test", "val", "train")


def main(arguments: Sequence[str]) -> None:
    """Parse, load, evaluate, print."""
    parser = Parser(__doc__)
    parser.add_argument("--workdir", metavar="DIR", required=True, help="run folder that scripts/train.py wrote")
    parser.add_argument(
        "--split", metavar="PART", default="test", help="test, val or train; or a FILE.npz with images and labels"
    )
    parser.add_argument(
        "--tta",
        choices=["none", "mirror", "mirror-translate", "unsure"],
        default="none",
        help="test-time augmentation: average the logits of an image and its mirror image, or of six views; "
        "unsure: of six views where the first class leads by less than 0.5",
    )
    parser.add_argument("--fold", action="store_true", help="fold batch norms into convolutions, and compare times")
    parser.add_argument("--checkpoint", choices=["last", "best"], default="last", help="newest, or best by validation")
    parser.add_argument("--data.dir", dest="data_dir", metavar="DIR", help="where the data set lies now")
    parser.add_argument("--trust-code", action="store_true", help="run the network's own code that the folder recorded")
    options = parser.parse_args(arguments)
    if options.split not in PARTS and not options.split.endswith(".npz"):
        parser.error(f"--split {options.split} is not allowed: it must be {', '.join(PARTS)} or a FILE.npz")

    from jax_cifar.evaluation.latency import latency_lines
    from jax_cifar.evaluation.predict import mirror_warning
    from jax_cifar.run.load import load_run
    from jax_cifar.telemetry.environment import describe_devices

    trained = load_run(options.workdir, options.checkpoint, data_dir=options.data_dir, trust_code=options.trust_code)
    unfolded, trained = trained, trained.folded() if options.fold else trained
    data = trained.images_of(options.split, options.data_dir)
    report = trained.evaluate(data, options.tta)
    images = f"{options.split} images"
    if data.true_labels is not None:
        images += f" by their true labels ({(data.labels != data.true_labels).mean():.1%} were made wrong)"
    print(f"{trained.config.name}, step {trained.step:,}, {images}, tta {options.tta}\n")
    print(report.table())
    if options.fold:
        print(f"\nlatency, {describe_devices()}")
        for line in latency_lines({"unfolded": unfolded.logits, "folded": trained.logits}, data.images):
            print(line)
    if warning := mirror_warning(options.tta, trained.config.augment):
        print(f"WARNING: {warning}", file=sys.stderr)


if __name__ == "__main__":
    run(main)
