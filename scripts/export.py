"""Write a trained network as one ONNX file, after proving on all test images that it computes what JAX computes.

python scripts/export.py --workdir runs/first --out model.onnx
python scripts/export.py --workdir runs/first --out model.onnx --float-input --checkpoint best
"""

from jax_cifar.signals import guard

if __name__ == "__main__":
    guard()  # before all that takes long to import

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jax_cifar.cli import Parser, run
from jax_cifar.errors import ConfigError
from jax_cifar.files import expand

if TYPE_CHECKING:
    from jax_cifar.data import Dataset
    from jax_cifar.run.load import Run


def main(arguments: Sequence[str]) -> None:
    """Parse, load, export."""
    parser = Parser(__doc__)
    parser.add_argument("--workdir", metavar="DIR", required=True, help="run folder that scripts/train.py wrote")
    parser.add_argument("--out", metavar="FILE.onnx", required=True, help="file to write; an older one is replaced")
    parser.add_argument(
        "--float-input",
        action="store_true",
        help="take normalised float32 NCHW images; default: uint8 NHWC images, normalised inside the graph",
    )
    parser.add_argument("--checkpoint", choices=["last", "best"], default="last", help="newest, or best by validation")
    parser.add_argument("--data.dir", dest="data_dir", metavar="DIR", help="where the data set lies now")
    options = parser.parse_args(arguments)

    try:
        from torch_ref.export import check_destination
    except ImportError as error:
        raise ConfigError(f"Exporting needs {error.name}. Install it with: pip install -e '.[torch]'") from None
    out = check_destination(options.out)

    import jax

    # Agreement to five digits asks for float32 throughout, which accelerators round; and no GPU is needed.
    jax.config.update("jax_platforms", "cpu")
    from jax_cifar.config import ModelConfig
    from jax_cifar.run.folder import read_config
    from jax_cifar.run.load import load_run

    network = read_config(expand(options.workdir)).model
    if not isinstance(network, ModelConfig):
        raise ConfigError(f"{network} is a network of one's own: it has no PyTorch twin to export.")
    trained = load_run(options.workdir, options.checkpoint, dtype="float32", data_dir=options.data_dir)
    export(trained, trained.part("test", options.data_dir), out, options.float_input)


def export(trained: "Run", test: "Dataset", out: Path, float_input: bool) -> None:
    """JAX variables -> torch_ref -> ONNX -> checked in ONNX Runtime on all test images -> `out`."""
    from jax_cifar.config.files import to_dict
    from jax_cifar.evaluation.metrics import report
    from torch_ref import convert
    from torch_ref import export as onnx_export
    from torch_ref.models import create_model

    config, spec = trained.config, trained.network.spec
    if spec.side not in (None, spec.image_shape[0]):
        raise ConfigError(
            f"{config.name} is judged on images downsampled to {spec.side} pixels (train.resolutions),"
            f" which the exported file cannot do. Train with a last resolution of {spec.image_shape[0]} to export it."
        )
    network = create_model(config.model, spec.num_classes, spec.image_shape[0])
    network.load_state_dict(convert.to_torch(trained.variables, network))
    model = onnx_export.to_onnx(network, spec.image_shape, spec.mean, spec.std, float_input)

    images, expected = test.images, trained.logits(test.images)
    if float_input:
        images = onnx_export.normalize(images, spec.mean, spec.std)
    logits = onnx_export.require_agreement(model, images, expected)
    in_jax, in_onnx = (report(values, test.labels, spec.label_names) for values in (expected, logits))

    layout = "float32 NCHW, normalised with mean and std" if float_input else "uint8 NHWC, 0 to 255"
    onnx_export.set_metadata(
        model,
        input=layout,
        label_names=spec.label_names,
        mean=spec.mean,
        std=spec.std,
        dataset=trained.data_name,
        step=trained.step,
        test_accuracy=in_onnx.accuracy,
        config=to_dict(config),
    )
    onnx_export.save(model, out)

    gap, scale = abs(logits - expected).max(), abs(expected).max()
    same = (logits.argmax(1) == expected.argmax(1)).sum()
    print(f"network         {config.name}, step {trained.step:,}: {config.model.name}, {spec.num_classes} classes")
    print(f"input           images, {layout}, any number")
    print(
        f"agreement       logits within {gap / scale:.1e} of the largest; {same:,} of {len(logits):,} classes the same"
    )
    print(f"test accuracy   {in_jax.accuracy:.2%} in JAX, {in_onnx.accuracy:.2%} in ONNX Runtime")
    print(f"written         {out}, {out.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    run(main)
