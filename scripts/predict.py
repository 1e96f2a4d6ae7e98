"""Say what is on pictures of one's own, with a trained network: the most probable classes of each.

python scripts/predict.py --workdir runs/first cat.jpg holiday/
python scripts/predict.py --onnx model.onnx --json holiday/ > holiday.jsonl
curl -s https://example.org/cat.jpg | python scripts/predict.py --onnx model.onnx --top 1 -

A picture is turned upright, cut to its central square and shrunk to what the network sees (antialiased); what is
transparent shows white, of an animation the first frame counts. Of a folder every file is looked at, at any depth, that
is not hidden. A file that is no picture is one line of complaint; the others are predicted, and the exit code is 2.
"""

from jax_cifar.process import begin

if __name__ == "__main__":
    begin()  # before all that takes long to import

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from jax_cifar.cli import Parser, run, start_of
from jax_cifar.errors import DataError, print_warning, printable

if TYPE_CHECKING:
    from jax_cifar.evaluation.classify import Classifier, Prediction

MUCH_SHRUNK = 8  # times a side: of every 64 pixels one is left


def main(arguments: Sequence[str]) -> None:
    """Parse, load, predict, print."""
    options = parse(arguments)
    model, batch_size = load(options)

    from jax_cifar.evaluation.classify import predict_pictures

    failed, warned = False, False
    with suppress(BrokenPipeError):  # as of `| head`, which has what it wanted
        for found in predict_pictures(model, read_images(options.images), options.top, batch_size):
            print_json(found) if options.json else print_table(found, model.label_names, options.top)
            failed |= found.error is not None
            warned = warn(found, warned)
    if failed:
        sys.exit(DataError.exit_code)  # every one was told of at its place


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options, those refused that do nothing together."""
    parser = Parser(__doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--workdir", metavar="DIR", help="run folder that scripts/train.py wrote")
    source.add_argument("--onnx", metavar="FILE", help="what scripts/export.py wrote; needs neither JAX nor PyTorch")
    source.add_argument(
        "--stablehlo", metavar="FILE", help="what scripts/export.py wrote; needs JAX, no network's code"
    )
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="a picture, a folder of them, or - (standard input)")
    parser.add_argument("--top", metavar="N", type=int, default=5, help="classes shown of each picture; default: 5")
    parser.add_argument("--json", action="store_true", help="one object a line: file, and predictions or error")
    of_runs = [
        parser.add_argument(
            "--checkpoint", choices=["last", "best"], default="last", help="newest, or best by validation"
        ),
        parser.add_argument(
            "--trust-code", action="store_true", help="run the network's own code that the folder recorded"
        ),
        parser.add_argument(
            "--data.dir", dest="data_dir", metavar="DIR", help="where the data set of an old run lies now"
        ),
    ]
    options = parser.parse_args(arguments)
    if options.top < 1:
        parser.error(f"--top {options.top} is not allowed: it must be at least 1")
    if options.images.count("-") > 1:
        parser.error("- is given twice: standard input is one picture")
    idle = [each.option_strings[0] for each in of_runs if getattr(options, each.dest) != each.default]
    if options.workdir is None and idle:
        parser.error(f"{idle[0]} does nothing with an exported file, only with --workdir")
    return options


def load(options: argparse.Namespace) -> tuple["Classifier", int]:
    """The network, and how many pictures it is shown at once."""
    if options.onnx is not None:
        from jax_cifar.deploy.onnx import load_onnx

        return load_onnx(options.onnx), 256
    if options.stablehlo is not None:
        from jax_cifar.deploy.stablehlo import load_stablehlo

        return load_stablehlo(options.stablehlo), 256
    from jax_cifar.run.load import load_run

    trained = load_run(options.workdir, options.checkpoint, data_dir=options.data_dir, trust_code=options.trust_code)
    return trained, trained.config.eval.batch_size


def read_images(images: Sequence[str]) -> Iterator[str | bytes]:
    """The names as they are, and for `-` what comes in, once it is its turn."""
    from jax_cifar.data.pictures import LARGEST_FILE

    for image in images:
        if image == "-" and sys.stdin.isatty():
            raise DataError(f"- is a picture that is piped in: {start_of('predict')} ... - < cat.jpg")
        yield image if image != "-" else sys.stdin.buffer.read(LARGEST_FILE)


def print_table(found: "Prediction", names: Sequence[str], top: int) -> None:
    """Probability and class, the most probable beside the name of the file; an error as a line on stderr."""
    if found.error is not None:
        print(printable(f"error: {found.error}", keep=""), file=sys.stderr)
        return
    width = max(len(printable(name, keep="")) for name in names)
    for rank, guess in enumerate(found.predictions):
        file = "" if rank else f"  {printable(found.file, keep='')}"
        print(f"{guess.probability:8.2%}  {printable(guess.label, keep=''):{width}}{file}".rstrip(), flush=True)
    if top > 1:
        print(flush=True)


def print_json(found: "Prediction") -> None:
    """One object a line, in ASCII."""
    values = {"error": str(found.error)} if found.error else {"predictions": [g._asdict() for g in found.predictions]}
    # The one control character that JSON leaves as it is.
    print(json.dumps({"file": found.file, **values}).replace("\x7f", "\\u007f"), flush=True)


def warn(found: "Prediction", warned: bool) -> bool:
    """Say what the network does not see: of every animation, and once of a picture that was shrunk a lot."""
    picture = found.picture
    if picture is None:
        return warned
    if picture.has_frames:
        print_warning(f"{found.file} holds several frames; the first one was taken.")
    size = picture.pixels.shape[0]
    if warned or min(picture.width, picture.height) < MUCH_SHRUNK * size:
        return warned
    print_warning(
        f"{found.file} was shrunk a lot, from {picture.width} x {picture.height} pixels to {size} x {size}: what is"
        " small on it is gone. Cut out what is to be recognised. (Said once.)"
    )
    return True


if __name__ == "__main__":
    run(main, needs_reader=True)
