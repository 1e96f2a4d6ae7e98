"""Turn published CIFAR files into a TFDS folder, without TensorFlow; TFDS and `data.dir` both read it.

python scripts/prepare_tfds.py --name cifar10 --source cifar-10-binary.tar.gz --out ~/tensorflow_datasets
"""

from jax_cifar.process import begin

if __name__ == "__main__":
    begin()  # before all that takes long to import

from collections.abc import Sequence

from jax_cifar.cli import Parser, run
from jax_cifar.files import expand


def main(arguments: Sequence[str]) -> None:
    """Parse, prepare, say where."""
    parser = Parser(__doc__)
    parser.add_argument("--name", choices=["cifar10", "cifar100"], required=True, help="data set")
    parser.add_argument(
        "--source", metavar="PATH", type=expand, required=True, help="published binary archive or its folder"
    )
    parser.add_argument("--out", metavar="DIR", type=expand, required=True, help="TFDS data folder")
    options = parser.parse_args(arguments)

    from jax_cifar.data.published import CIFAR10, CIFAR100
    from jax_cifar.data.tfds import prepare

    spec = {"cifar10": CIFAR10, "cifar100": CIFAR100}[options.name]
    print(prepare(spec, options.source, options.out))


if __name__ == "__main__":
    run(main)
