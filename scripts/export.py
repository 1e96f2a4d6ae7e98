"""Write a trained network as one ONNX file, after proving on all test images that it computes what JAX computes.

python scripts/export.py --workdir runs/first --out model.onnx
python scripts/export.py --workdir runs/first --out model.onnx --float-input --checkpoint best
python scripts/export.py --workdir runs/first --out small.onnx --int8
"""

from jax_cifar.signals import guard

if __name__ == "__main__":
    guard()  # before all that takes long to import

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jax_cifar.cli import Parser, run
from jax_cifar.errors import ConfigError
from jax_cifar.files import expand

if TYPE_CHECKING:
    from onnx import ModelProto

    from jax_cifar.data import Splits
    from jax_cifar.run.load import Run
    from torch_ref.quantize import Variant


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
    add_variants(parser)
    parser.add_argument("--checkpoint", choices=["last", "best"], default="last", help="newest, or best by validation")
    parser.add_argument("--data.dir", dest="data_dir", metavar="DIR", help="where the data set lies now")
    options = parser.parse_args(arguments)
    variant = chosen_variant(options)
    if options.float_input and variant != "float32":
        parser.error(f"--float-input is for float32 only: {variant} takes uint8 images")

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
    export(trained, trained.splits(options.data_dir), out, options.float_input, variant)


def add_variants(parser: Parser) -> None:
    """The options that choose a precision, of which one can be given."""
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "--int8",
        metavar="HOW",
        nargs="?",
        choices=["static", "dynamic", "weights"],
        const="static",
        help="static (the default): calibrated on training images; dynamic: ranges found while running; weights alone."
        " Accuracy, size and latency are shown beside the float model's",
    )
    for name in ("bfloat16", "float16"):
        meaning = f"weights in {name}, computing in float32; shown likewise"
        group.add_argument(f"--{name}", dest="half", action="store_const", const=name, help=meaning)


def chosen_variant(options: Namespace) -> "Variant":
    """What the options of `add_variants` say."""
    if options.int8 is None:
        return options.half or "float32"
    return "int8" if options.int8 == "static" else f"int8-{options.int8}"


def in_variant(model: "ModelProto", variant: "Variant", splits: "Splits") -> tuple["ModelProto", float]:
    """The model in another precision and its test accuracy; prints how it was made, and both models side by side."""
    from jax_cifar.lab.deployed import compare, onnx_way, table
    from jax_cifar.telemetry.environment import cpu_count
    from torch_ref.quantize import make_variant

    smaller, notes = make_variant(model, variant, splits)
    contents = {name: one.SerializeToString() for name, one in {"float32": model, variant: smaller}.items()}
    figures = compare({name: onnx_way(content) for name, content in contents.items()}, splits.test)
    print(*notes, table(figures), f"ONNX Runtime, {cpu_count()} threads", sep="\n")
    return smaller, figures[-1].accuracy


def export(trained: "Run", splits: "Splits", out: Path, float_input: bool, variant: "Variant") -> None:
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

    test = splits.test
    images, expected = test.images, trained.logits(test.images)
    if float_input:
        images = onnx_export.normalize(images, spec.mean, spec.std)
    logits = onnx_export.require_agreement(model, images, expected)
    in_jax, in_onnx = (report(values, test.labels, spec.label_names) for values in (expected, logits))

    accuracy = in_onnx.accuracy
    if variant != "float32":
        model, accuracy = in_variant(model, variant, splits)
    layout = "float32 NCHW, normalised with mean and std" if float_input else "uint8 NHWC, 0 to 255"
    onnx_export.set_metadata(
        model,
        input=layout,
        label_names=spec.label_names,
        mean=spec.mean,
        std=spec.std,
        dataset=trained.data_name,
        step=trained.step,
        test_accuracy=accuracy,
        config=to_dict(config),
        image_shape=spec.image_shape,
        side=spec.side,
        variant=variant,
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
