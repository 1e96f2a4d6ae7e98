"""Write a trained network as one file for other runtimes, proved on real images to compute what JAX computes.

python scripts/export.py --workdir runs/first --out model.onnx          # ONNX Runtime, browsers, OpenVINO, ...
python scripts/export.py --workdir runs/first --out model.stablehlo     # JAX alone, on CPU, CUDA and TPU
python scripts/export.py --workdir runs/first --out model.onnx --fold --checkpoint best
python scripts/export.py --workdir runs/first --out small.onnx --int8
python scripts/export.py --workdir runs/first --out model.onnx --split photos.npz

The file gets its name only after another process has loaded it and predicted the images.
"""

from jax_cifar.process import begin

if __name__ == "__main__":
    begin()  # before all that takes long to import

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jax_cifar.cli import Parser, run
from jax_cifar.errors import ConfigError, ExportError
from jax_cifar.files import expand
from jax_cifar.progress import print_above, progress

if TYPE_CHECKING:
    import onnx

    from jax_cifar.data import Splits
    from jax_cifar.deploy.agreement import Expected
    from jax_cifar.deploy.source import Source
    from jax_cifar.run.load import Run
    from torch_ref.quantize import Variant


def main(arguments: Sequence[str]) -> None:
    """Parse, load, export, print."""
    options = parse(arguments)
    from jax_cifar.deploy.artefact import check_destination, write_verified

    out, variant = check_destination(options.out), chosen_variant(options)
    to_onnx = out.suffix == ".onnx"
    if to_onnx:
        require_torch()
    with progress("export", total=3, unit="steps") as bar:
        bar.advance(0, note="the run and its own predictions")
        source = load(options, out)
        splits = calibration_images(source.original, options.data_dir) if variant == "int8" else None
        bar.advance(note="the file")
        if to_onnx:
            model = float_model(source, options.float_input, options.torch_twin)
            model, expected = in_variant(model, source, splits, variant)
            content = model.SerializeToString()
        else:
            content, expected = stablehlo_content(source), source.expected
        bar.advance(note="another process reads it and predicts the images")
        try:
            agreement, logits = write_verified(out, content, source.test.images, expected)
        except ExportError:
            source.require_same_alone()  # else no file can agree
            raise
    runtime = "ONNX Runtime" if to_onnx else "JAX from the file"
    judged = (logits, runtime) if options.split == "test" else (logits, f"{runtime}, on {options.split}")
    for line in summary(source, options.float_input, agreement, judged, out):
        print(line)
    if options.fold and variant == "float32":  # of another one the table tells the times, beside the float model's
        for line in fold_latencies(source, content if to_onnx else None, options.torch_twin, options.float_input):
            print(line)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options."""
    parser = Parser(__doc__)
    parser.add_argument("--workdir", metavar="DIR", required=True, help="run folder that scripts/train.py wrote")
    parser.add_argument("--out", metavar="FILE", required=True, help="file to write, .onnx or .stablehlo")
    parser.add_argument("--overwrite", action="store_true", help="replace a file even if it is no export of this run")
    parser.add_argument(
        "--fold", action="store_true", help="fold batch norms into convolutions; in float32, compare times too"
    )
    parser.add_argument(
        "--float-input",
        action="store_true",
        help="take normalised float32 NCHW images; default: uint8 NHWC images, normalised inside the graph",
    )
    precision = parser.add_mutually_exclusive_group()
    precision.add_argument(
        "--int8",
        metavar="HOW",
        nargs="?",
        choices=["static", "dynamic", "weights"],
        const="static",
        help="static (the default): calibrated on training images; dynamic: ranges found while running; weights alone."
        " Accuracy, size and latency are shown beside the float model's",
    )
    half: dict[str, Any] = {"dest": "half", "action": "store_const"}
    halved = "weights of half the size, computing in float32; shown likewise"
    precision.add_argument("--bfloat16", const="bfloat16", help=halved, **half)
    precision.add_argument("--float16", const="float16", help=f"{halved}, in the older format", **half)
    parser.add_argument(
        "--torch-twin", metavar="FILE.py:NAME", help="the same network in PyTorch, for a network of one's own"
    )
    parser.add_argument("--checkpoint", choices=["last", "best"], default="last", help="newest, or best by validation")
    parser.add_argument(
        "--split",
        metavar="FILE.npz",
        default="test",
        help="images and labels to prove the file on and to measure accuracy with; default: the run's test images",
    )
    parser.add_argument("--data.dir", dest="data_dir", metavar="DIR", help="where the data set lies now")
    parser.add_argument("--trust-code", action="store_true", help="run the network's own code that the folder recorded")
    options = parser.parse_args(arguments)
    if options.split != "test" and not options.split.endswith(".npz"):
        parser.error(
            f"--split {options.split} is not allowed: it must be a FILE.npz; without it the test images are taken"
        )
    return options


def chosen_variant(options: argparse.Namespace) -> "Variant":
    """The precision that the options ask for."""
    ways: dict[str, Variant] = {"static": "int8", "dynamic": "int8-dynamic", "weights": "int8-weights"}
    return options.half or (ways[options.int8] if options.int8 else "float32")


def require_torch() -> None:
    """Raise `ConfigError` where PyTorch, or what it exports with, is not installed."""
    try:
        import torch_ref.export  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"An ONNX file needs {error.name}. Install it with: pip install -e '.[torch]'. Or export to a .stablehlo"
            " file, which needs JAX alone."
        ) from None


def load(options: argparse.Namespace, out: Path) -> "Source":
    """The run and the test images; what can be refused is, before anything is computed."""
    import jax

    # Agreement asks for float32 throughout, which accelerators round; and no GPU is needed.
    jax.config.update("jax_platforms", "cpu")
    from jax_cifar.deploy.artefact import require_ours
    from jax_cifar.deploy.source import Source, recorded
    from jax_cifar.run.folder import read_config
    from jax_cifar.run.load import load_run

    config = read_config(expand(options.workdir))
    check_options(options, config.model, out)
    require_ours(out, recorded(config), options.overwrite)
    original = load_run(
        options.workdir,
        options.checkpoint,
        dtype="float32",
        data_dir=options.data_dir,
        trust_code=options.trust_code,
    )
    folded = original.folded() if options.fold else original
    return Source(folded, original, original.images_of(options.split, options.data_dir))


def calibration_images(run: "Run", data_dir: str | None) -> "Splits":
    """The data set whose training images `--int8 static` is calibrated on."""
    if run.data_name is None:
        raise ConfigError(
            f"--int8 static is calibrated on training images, and {run.folder} was trained on images given in Python,"
            " which it does not keep. --int8 dynamic and --int8 weights need none."
        )
    return run.splits(data_dir)


def check_options(options: argparse.Namespace, network: Any, out: Path) -> None:
    """Raise `ConfigError` for options that do nothing together, and for a network without a PyTorch twin."""
    from jax_cifar.config import ModelConfig

    ships, variant = isinstance(network, ModelConfig), chosen_variant(options)
    if options.float_input and variant != "float32":
        raise ConfigError(f"--float-input is for float32 only: {variant} takes uint8 images.")
    if out.suffix != ".onnx":
        idle = [name for name in ("float_input", "torch_twin", "int8", "half") if getattr(options, name)]
        if idle:
            given = options.half if idle[0] == "half" else idle[0].replace("_", "-")
            raise ConfigError(f"--{given} does nothing with {out.name}, only with an .onnx file.")
    elif not ships and options.torch_twin is None:
        raise ConfigError(
            f"{network} is a network of one's own, and ONNX files are made by PyTorch: name its twin there,"
            " --torch-twin FILE.py:NAME (docs/extending.md). Or export it for JAX alone:"
            f" --out {out.with_suffix('.stablehlo')}"
        )
    elif ships and options.torch_twin is not None:
        raise ConfigError(f"--torch-twin is for a network of one's own: {network.name} has a twin that ships.")


def float_model(source: "Source", float_input: bool = False, torch_twin: str | None = None) -> "onnx.ModelProto":
    """The network as an ONNX model in float32 with its metadata; its PyTorch twin was proved to be the same network."""
    from jax_cifar.deploy.source import NORMALIZED, PIXELS
    from torch_ref import export
    from torch_ref.twin import make_twin

    twin = make_twin(source.run, torch_twin)
    if source.exact is not None:
        export.require_twin(twin, source.exact.inputs, source.exact.logits)
    model = export.to_onnx(twin, source.run.network.spec, float_input)
    export.set_metadata(model, **source.metadata(NORMALIZED if float_input else PIXELS))
    return model


def in_variant(
    model: "onnx.ModelProto", source: "Source", splits: "Splits | None", variant: "Variant"
) -> tuple["onnx.ModelProto", "Expected"]:
    """The float32 model in another precision, and the logits that its file has to give.

    Prints how it was made, and both models side by side.
    """
    from jax_cifar.backend.threads import cpu_count
    from jax_cifar.deploy.agreement import QUANTIZED, Expected
    from jax_cifar.lab.deployed import compare, onnx_way, table
    from torch_ref.export import set_metadata
    from torch_ref.quantize import make_variant

    if variant == "float32":
        return model, source.expected
    smaller, notes = make_variant(model, variant, splits)
    ways = {name: onnx_way(one.SerializeToString()) for name, one in {"float32": model, variant: smaller}.items()}
    figures = compare(ways, source.test)
    print_above("\n".join([*notes, table(figures), f"ONNX Runtime, {cpu_count()} threads"]))
    set_metadata(smaller, **source.metadata(variant=variant) | {"test_accuracy": figures[-1].accuracy})
    logits = ways[variant].predict(source.test.images)
    return smaller, Expected(logits, None, **({"allowed": QUANTIZED} if variant in ("int8", "int8-dynamic") else {}))


def stablehlo_content(source: "Source") -> bytes:
    """The content of a StableHLO file of the network."""
    import jax

    from jax_cifar.deploy.stablehlo import PLATFORMS, to_stablehlo

    entries = source.metadata() | {"jax": jax.__version__, "platforms": PLATFORMS}
    return to_stablehlo(source.run.network, source.run.variables, entries)


def summary(source: "Source", float_input: bool, agreement: Any, judged: tuple[Any, str], out: Path) -> Iterator[str]:
    """What was exported, and how well it agrees; `judged` are the file's logits, and what gave them."""
    from jax_cifar.deploy.source import NORMALIZED, PIXELS

    trained, (logits, runtime) = source.run, judged
    network = getattr(trained.config.model, "name", None) or type(trained.config.model).__name__
    accuracy = (logits.argmax(1) == source.test.labels).mean()
    yield f"network         {trained.config.name}, step {trained.step:,}: {network}, {len(trained.label_names)} classes"
    yield f"input           images, {NORMALIZED if float_input else PIXELS}, any number"
    yield f"agreement       {agreement}"
    yield f"test accuracy   {source.report.accuracy:.2%} in JAX, {accuracy:.2%} in {runtime}"
    yield f"written         {out}, {out.stat().st_size / 1e6:.1f} MB, after another process had loaded it and predicted"


def fold_latencies(
    source: "Source", content: bytes | None, torch_twin: str | None = None, float_input: bool = False
) -> Iterator[str]:
    """Times before and after folding: of ONNX Runtime where `content` is the folded float32 model, else of JAX."""
    from jax_cifar.evaluation.latency import BATCHES, latency_lines
    from jax_cifar.telemetry.environment import describe_devices

    ways = {"unfolded": source.original.logits, "folded": source.run.logits}
    images, spec = source.test.images[: max(BATCHES)], source.run.network.spec
    if content is not None:
        import onnx

        from jax_cifar.data.dataset import normalize
        from torch_ref.export import open_session, predict, to_onnx
        from torch_ref.twin import make_twin

        images = normalize(images, spec.mean, spec.std) if float_input else images
        before = to_onnx(make_twin(source.original, torch_twin), spec, float_input)
        models = {"unfolded": before, "folded": onnx.load_model_from_string(content)}
        sessions = {name: open_session(model) for name, model in models.items()}
        ways = {name: lambda images, on=on: predict(on, images, len(images)) for name, on in sessions.items()}
    yield f"latency         {'JAX' if content is None else 'ONNX Runtime'} on {describe_devices()}"
    yield from latency_lines(ways, images)


if __name__ == "__main__":
    run(main)
