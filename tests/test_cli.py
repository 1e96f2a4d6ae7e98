"""The options that scripts share: what a config file and the command line make, and how mistakes end."""

import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from jax_cifar import cli
from jax_cifar.cli import ExperimentParser, run
from jax_cifar.config.files import load_config
from jax_cifar.errors import ConfigError, Diverged, Interrupted, UserError

ROOT = Path(__file__).parents[1]
QUICKSTART = str(ROOT / "configs" / "quickstart.py")


@pytest.fixture
def parser():
    parser = ExperimentParser("What it does.", prog="script")
    parser.add_argument("--init-from", help="with a dash")
    parser.add_argument("--weight_decay", help="with an underscore")
    parser.add_argument("--twice", action="store_true", help="an option of its own")
    parser.add_json("figures go there")
    return parser


def test_own_options_and_fields_of_the_configuration_come_in_any_order(parser, tmp_path):
    file = tmp_path / "out.json"
    options, config = parser.read(["--optim.lr", "0.25", "--json", str(file), "--config", QUICKSTART, "--twice"])
    assert (options.json, options.twice, options.config) == (file, True, QUICKSTART)
    assert (config.name, config.optim.lr) == ("quickstart", 0.25)
    options, _ = parser.read(["--config", QUICKSTART])
    assert (options.json, options.twice) == (None, False)


@pytest.mark.parametrize("given", [["--optim.lr", "0.3"], ["--optim.lr=0.3"], ["--config.optim.lr", "0.3"], []])
def test_the_command_to_train_has_each_field_once_and_no_option_of_the_script(parser, given):
    arguments = ["--twice", *given, "--model.no-whiten-bias", "--config", QUICKSTART, "--train.batch-size", "8"]
    _, config = parser.read(["--config", QUICKSTART])
    command = parser.command_to_train(arguments, config, ["--optim.lr", "0.1"])
    kept = "--model.no-whiten-bias --train.batch-size 8"
    assert command == f"python scripts/train.py --config {QUICKSTART} {kept} --optim.lr 0.1"


def test_where_a_wheel_was_installed_the_command_to_train_names_no_file_that_is_not_there(parser, monkeypatch):
    monkeypatch.setattr(cli, "shipped", lambda name: Path(cli.__file__).parent / name)
    _, config = parser.read(["--config", "quickstart"])
    command = parser.command_to_train(["--config", "quickstart"], config, ["--optim.lr", "0.1"])
    assert command == "python -m jax_cifar train --config quickstart --optim.lr 0.1"


def test_a_dash_and_an_underscore_are_the_same_in_the_name_of_an_option(parser):
    for words in (["--init_from", "a_b-c", "--weight-decay=d_e"], ["--init-from=a_b-c", "--weight_decay", "d_e"]):
        options, _ = parser.read(["--config", QUICKSTART, *words, "--optim.weight-decay", "0.5"])
        assert (options.init_from, options.weight_decay) == ("a_b-c", "d_e")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], r"^script: --config FILE is missing\. --help shows the options\.$"),
        (["--config", "a.py", "--config", "b.py"], r"--config is given twice: choose one"),
        (["--config=a.py", "--json", "x", "--json=y"], r"^script: --json is given twice: choose one\. --help"),
        (["--config", QUICKSTART, "--twice", "--twice"], r"--twice is given twice"),
        (["quickstart.py"], r"^script: --config FILE is missing: say --config quickstart\.py\. --help"),
        (["--confg", "x/y.py:b"], r"^script: --config FILE is missing: say --config x/y\.py:b\. --help"),
        (["--config", QUICKSTART, "--optim.rate", "1"], r"^--optim\.rate is not a field of the configuration"),
        (["--config", QUICKSTART, "--conf", "1"], r"^--conf is not a field of the configuration"),
        (["--config", QUICKSTART, "more"], "Unexpected argument 'more'"),
        (["--config"], "--config: expected one argument"),
        (["--json", "nowhere/x.json"], r"^--json = 'nowhere/x\.json' is not allowed: it must be a file in a folder"),
        (["--json", "."], r"^--json = '\.' is not allowed"),
        (["--json", os.devnull], r"^--json = '/dev/null' is not allowed"),  # it would be replaced, by root
    ],
)
def test_mistakes_are_told_in_one_message(parser, arguments, message):
    with pytest.raises(ConfigError, match=message):
        parser.read(arguments)


def test_help_lists_own_options_and_every_field_with_the_files_values(parser, capsys):
    with pytest.raises(SystemExit) as end:
        parser.read(["--config", QUICKSTART, "--help"])
    printed = capsys.readouterr().out
    assert end.value.code is None
    assert all(text in printed for text in ("What it does.", "--twice", "figures go there", "--optim.lr"))
    with pytest.raises(SystemExit):
        parser.read(["-h"])
    assert "--optim.lr" in capsys.readouterr().out


def test_a_users_mistake_is_an_exit_code_and_a_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["script"])
    with pytest.raises(SystemExit) as end:
        run(lambda _: ExperimentParser("").read([]))
    assert end.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def fail(error):
    raise error


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (OSError(28, "No space left on device", "runs/x"), 2, "error: No space left on device: runs/x\n"),
        (OSError("the tape is torn"), 2, "error: the tape is torn\n"),
        (MemoryError(), 2, "error: Out of memory (the machine gave no more). A smaller --train.batch_size (scripts/"),
        (RuntimeError("RESOURCE_EXHAUSTED: 5 GB\nat ..."), 2, "error: Out of memory (RESOURCE_EXHAUSTED: 5 GB). A"),
        (KeyboardInterrupt(), 75, "Stopped by SIGINT.\n"),
        (Diverged("The loss became nan."), 3, "error: The loss became nan.\n"),
        (Interrupted("Stopped by SIGTERM at step 5."), 75, "Stopped by SIGTERM at step 5.\n"),
    ],
)
def test_what_a_user_can_put_right_is_one_line_and_an_exit_code(capsys, error, code, message):
    with pytest.raises(SystemExit) as end:
        run(lambda _: fail(error))
    printed = capsys.readouterr().err
    assert end.value.code == code
    assert printed.startswith(message)
    assert printed.count("\n") == 1


def test_a_fault_in_what_a_config_file_defines_is_one_line_whatever_calls_it(tmp_path, capsys):
    file = tmp_path / "own.py"
    file.write_text(
        "from flax import linen as nn\n"
        "from jax_cifar.config import Config\n"
        "class Net(nn.Module):\n"
        "    @property\n"
        "    def smallest_image(self):\n"
        "        return {}['size']\n"
        "def get_config():\n"
        "    return Config(name='own', model=Net())\n"
    )
    config = load_config(file)
    with pytest.raises(SystemExit) as end:
        run(lambda _: config.model.smallest_image)
    assert end.value.code == 2
    assert capsys.readouterr().err == "error: KeyError: 'size' (own.py, line 6: return {}['size']).\n"


def test_a_fault_of_the_program_keeps_its_traceback():
    with pytest.raises(RecursionError):
        run(lambda _: fail(RecursionError("too deep")))


def test_the_readme_has_every_exit_code():
    (told,) = re.findall(r"Exit codes: (.*?)\n\n", (ROOT / "README.md").read_text(), re.DOTALL)
    code = "from jax_cifar.cli import run; run(lambda _: {}['size'])"
    fault = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert fault.stderr.endswith("KeyError: 'size'\n")
    ends = {0, fault.returncode, *(kind.exit_code for kind in UserError.__subclasses__())}
    assert {int(text) for text in re.findall(r"(?:^|; )(\d+) ", told)} == ends == {0, 1, 2, 3, 75}


def test_the_options_need_no_jax():
    code = (
        "import sys; from jax_cifar.cli import ExperimentParser\n"
        "import jax_cifar.lab.tables\n"
        "try: ExperimentParser('').read(['--help'])\n"
        "except SystemExit: assert not {'jax', 'numpy', 'torch'} & {*sys.modules}, sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, "--optim.lr" in done.stdout) == (0, True), done.stderr


def test_a_name_that_the_output_has_no_letters_for_is_shown_all_the_same(monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    run(lambda _: print("runs/漢字", flush=True))
    assert written.getvalue() == b"runs/\\u6f22\\u5b57\n"
