"""Write a trained network as one ONNX file, after proving on all test images that it computes what JAX computes.

python scripts/export.py --workdir runs/first --out model.onnx
python scripts/export.py --workdir runs/first --out model.onnx --float-input --checkpoint best
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from jax_cifar.cli import Parser, run
from jax_cifar.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

    from jax_cifar.run.load import Trained


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
    options = parser.parse_args(arguments)

    try:
        from torch_ref.export import check_destination
    except ImportError as error:
        raise ConfigError(f"Exporting needs {error.name}. Install it with: pip install -e '.[torch]'") from None
    out = check_destination(options.out)

    import jax

    # Agreement to five digits asks for float32 throughout, which accelerators round; and no GPU is needed.
    jax.config.update("jax_platforms", "cpu")
    from jax_cifar.run.load import load_trained

    export(load_trained(options.workdir, options.checkpoint, dtype="float32"), out, options.float_input)


def export(trained: "Trained", out: "Path", float_input: bool) -> None:
    """JAX variables -> torch_ref -> ONNX -> checked in ONNX Runtime on all test images -> `out`."""
    import jax

    from jax_cifar.config.files import to_dict
    from jax_cifar.evaluation.metrics import report
    from torch_ref import convert
    from torch_ref import export as onnx_export
    from torch_ref.models import create_model

    config, splits, normalize = trained.config, trained.splits, trained.network.normalize
    shape = splits.test.images.shape[1:]
    if trained.network.side not in (None, shape[0]):
        raise ConfigError(
            f"{config.name} is judged on images downsampled to {trained.network.side} pixels (train.resolutions),"
            f" which the exported file cannot do. Train with a last resolution of {shape[0]} to export it."
        )
    network = create_model(config.model, splits.num_classes, shape[0])
    network.load_state_dict(convert.to_torch(jax.device_get(trained.state.eval_variables), network))
    model = onnx_export.to_onnx(network, shape, normalize.mean, normalize.std, float_input)

    images, expected = splits.test.images, trained.logits("test")
    if float_input:
        images = onnx_export.normalize(images, normalize.mean, normalize.std)
    logits = onnx_export.require_agreement(model, images, expected)
    in_jax, in_onnx = (report(values, splits.test.labels, splits.label_names) for values in (expected, logits))

    layout = "float32 NCHW, normalised with mean and std" if float_input else "uint8 NHWC, 0 to 255"
    onnx_export.set_metadata(
        model,
        input=layout,
        label_names=splits.label_names,
        mean=normalize.mean,
        std=normalize.std,
        dataset=splits.name,
        step=trained.step,
        test_accuracy=in_onnx.accuracy,
        config=to_dict(config),
    )
    onnx_export.save(model, out)

    gap, scale = abs(logits - expected).max(), abs(expected).max()
    same = (logits.argmax(1) == expected.argmax(1)).sum()
    print(f"network         {config.name}, step {trained.step:,}: {config.model.name}, {splits.num_classes} classes")
    print(f"input           images, {layout}, any number")
    print(
        f"agreement       logits within {gap / scale:.1e} of the largest; {same:,} of {len(logits):,} classes the same"
    )
    print(f"test accuracy   {in_jax.accuracy:.2%} in JAX, {in_onnx.accuracy:.2%} in ONNX Runtime")
    print(f"written         {out}, {out.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    run(main)
