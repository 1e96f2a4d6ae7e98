"""Make a page that runs an exported model in the browser: a folder to open from the disk or to put on any web server.

python scripts/demo.py --onnx model.onnx --out demo
python scripts/demo.py --onnx model.onnx --out demo --samples holiday/ --overwrite

The page needs no network, and sends no picture anywhere. ONNX Runtime Web, which it computes with, is fetched from npm
once (33 MB, verified) and kept in the cache folder.
"""

from jax_cifar.process import begin

if __name__ == "__main__":
    begin()  # before all that takes long to import

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from jax_cifar.cli import Parser, run
from jax_cifar.errors import UserError, print_warning
from jax_cifar.files import expand

if TYPE_CHECKING:
    from jax_cifar.deploy.demo import Sample
    from jax_cifar.deploy.onnx import OnnxModel


def main(arguments: Sequence[str]) -> None:
    """Parse, gather, write."""
    parser = Parser(__doc__)
    parser.add_argument("--onnx", metavar="FILE", type=expand, required=True, help="file that scripts/export.py wrote")
    parser.add_argument("--out", metavar="DIR", type=expand, required=True, help="folder to write the page into")
    samples = parser.add_mutually_exclusive_group()
    samples.add_argument(
        "--samples",
        metavar="DIR",
        type=expand,
        help="pictures to try, the first ten of a folder; default: test images of the model's data set",
    )
    samples.add_argument("--data.dir", dest="data_dir", metavar="DIR", help="where the data set lies now")
    parser.add_argument(
        "--runtime",
        metavar="DIR|FILE.tgz",
        type=expand,
        help="ONNX Runtime Web that is at hand: the package's .tgz, or its files, taken as they are",
    )
    parser.add_argument("--overwrite", action="store_true", help="write into a folder that holds other files")
    options = parser.parse_args(arguments)

    from jax_cifar.deploy import demo
    from jax_cifar.deploy.onnx import load_onnx
    from jax_cifar.deploy.web_runtime import load_runtime

    demo.check_destination(options.out, options.overwrite)
    model = load_onnx(options.onnx)
    runtime = load_runtime(options.runtime)
    files = demo.make_page(options.onnx, model, find_samples(model, options.samples, options.data_dir), runtime)
    demo.write_page(files, options.out)

    page, of_model = demo.weight(files), options.onnx.stat().st_size
    print(f"written         {options.out / 'index.html'}: open it in a browser")
    print(f"or serve it     python -m http.server --directory {options.out}")
    print(f"weight          {page / 1e6:.2f} MB gzipped, beside the model's {of_model / 1e6:.2f} MB")
    if page > demo.MOST_BYTES:
        print_warning(f"the page has more than {demo.MOST_BYTES / 1e6:g} MB beside its model; fewer samples need less")


def find_samples(model: "OnnxModel", folder: Path | None, data_dir: str | None) -> "list[Sample]":
    """Pictures of a folder, or of the data set that the model says it is of; without that, none."""
    from jax_cifar.config import DataConfig
    from jax_cifar.config.sections import DatasetName
    from jax_cifar.data import load_data
    from jax_cifar.deploy.demo import samples_of_folder, samples_of_set

    if folder is not None:
        return samples_of_folder(folder)
    name: Any = model.metadata.get("dataset")
    # Where a set of one's own lies is for its owner to say, not for a file that anybody may have made.
    if name not in get_args(DatasetName) or name in ("folder", "npz"):
        print_warning("the page has no samples: the model is of images of somebody's own. Name some with --samples DIR")
        return []
    try:
        splits = load_data(DataConfig(name=name, dir=data_dir))
    except UserError as error:
        print_warning(f"the page has no samples. {error} Or name pictures with --samples DIR")
        return []
    return samples_of_set(splits.test.images, splits.test.labels, splits.label_names)


if __name__ == "__main__":
    run(main)
