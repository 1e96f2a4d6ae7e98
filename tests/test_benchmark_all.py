"""benchmarks/all.py: which commands of RESULTS.md are run, what is kept of them, and how they end."""

import argparse
import json
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from benchmarks import all as suite
from benchmarks import processes
from benchmarks.all import Block
from jax_cifar.errors import ConfigError
from jax_cifar.signals import ending_with_us

PAGE = """# Title

```
python scripts/before.py
```

## One part

```
for i in 1 2; do
  echo "$i done"
done
```

Words.

```sh
python not/run.py
```

```
python scripts/benchmark.py step --rounds 5
python scripts/benchmark.py runtimes --workdir DIR
```

## B without a GPU

```
python scripts/train.py --config a.py
```

## On a GPU

```
python scripts/benchmark.py gpu --seeds 30
```
"""


@pytest.fixture(autouse=True)
def page(monkeypatch, tmp_path):
    """A page in place of RESULTS.md, on a machine without a GPU."""
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    monkeypatch.setattr(suite, "PAGE", page)
    monkeypatch.setattr(suite.shutil, "which", lambda name: None)
    return page


def parse(*arguments, quick=False):
    parser = argparse.ArgumentParser()
    suite.add_options(parser)
    options = parser.parse_args(arguments)
    options.json, options.quick = None, quick
    return options


def test_the_commands_of_the_page_are_found_with_their_sections(monkeypatch):
    found = suite.blocks(suite.PAGE)
    assert [(each.section, each.commands.count("\n")) for each in found] == [
        ("One part", 3),
        ("One part", 2),
        ("B without a GPU", 1),
        ("On a GPU", 1),
    ]
    assert suite.chosen(parse()) == found[:3]
    assert suite.chosen(parse("--sections", "On a GPU")) == found[3:]
    monkeypatch.setattr(suite.shutil, "which", lambda name: "/bin/nvidia-smi")
    assert suite.chosen(parse()) == found
    with pytest.raises(
        ConfigError,
        match=r'--sections "Two" is not known: RESULTS\.md has commands in One part, B without a GPU, On a G',
    ):
        suite.chosen(parse("--sections", "Two"))


def test_quick_runs_the_benchmarks_alone():
    assert suite.chosen(parse(quick=True)) == [Block("One part", "python scripts/benchmark.py step --quick\n")]
    assert suite.cases(parse(quick=True)) == 1


def test_quick_runs_a_suite_once(page):
    text = "## {}\n\n```\npython scripts/benchmark.py step --models {}\n```\n\n"
    page.write_text(text.format("A", "a") + text.format("A", "b") + text.format("B", "a"))
    assert [len(suite.chosen(parse(quick=quick))) for quick in (False, True)] == [3, 1]
    assert suite.chosen(parse(quick=True))[0].section == "A"


def test_blocks_are_run_and_a_failure_stops_no_other(page, tmp_path, capsys):
    page.write_text("## A\n\n```\necho one; echo two >&2\nfalse\necho three\n```\n\n```\npython -c 'print(4)'\n```\n")
    options = parse()
    options.json = tmp_path / "all.json"
    first, second = suite.measure(options)
    assert (first.complete, first.printed, first.said) == (False, "one\n", "two")
    assert (second.complete, second.printed, second.said) == (True, "4\n", "")
    assert "two\n" in capsys.readouterr().err
    assert str(first).endswith("s, NOT complete: two")

    # Again, with what is kept: the one that failed is run again, the other is not.
    options.json.write_text(json.dumps(suite.as_json("all", [first, replace(second, printed="kept")])))
    again = list(suite.measure(options))
    assert [each.printed for each in again] == ["one\n", "kept"]
    table = suite.table(again)
    assert table.startswith("## A\n\n```\necho one; echo two >&2\nfalse\necho three\n```\n\none\n\n```\npython -c")
    assert table.splitlines()[-2:] == [
        f"| A | echo three | no | {again[0].seconds:.0f} s | two |",
        f"| A | python -c 'print(4)' | yes | {second.seconds:.0f} s |  |",
    ]


def test_what_a_file_has_of_other_sections_stays_in_it(page, tmp_path):
    page.write_text("## A\n\n```\necho one\n```\n\n## B\n\n```\necho two\n```\n")
    first, options = Block("A", "echo one\n", True, 1.0, "kept\n"), parse("--sections", "B")
    options.json = tmp_path / "all.json"
    options.json.write_text(json.dumps(suite.as_json("all", [first])))
    assert suite.cases(options) == 2
    one, two = suite.measure(options)
    assert (one, two.printed) == (first, "two\n")


def test_a_file_that_cannot_be_gone_on_with_is_told(tmp_path):
    options = parse()
    options.json = tmp_path / "all.json"
    options.json.touch()
    with pytest.raises(ConfigError, match=r"--json .*all\.json holds no blocks to go on with .* Remove it, or name"):
        suite.cases(options)


def test_a_list_runs_nothing_and_writes_nothing(monkeypatch, capsys):
    monkeypatch.setattr(suite, "shell", None)
    options = parse("--list")
    assert (suite.cases(options), list(suite.measure(options))) == (0, [])
    assert capsys.readouterr().out.count("```") == 6


def test_what_a_block_started_ends_with_it():
    command = ["bash", "-c", "sleep 60 & echo $!; wait"]
    with (
        pytest.raises(KeyboardInterrupt),
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process,
        ending_with_us(process, session=True),
    ):
        assert process.stdout is not None
        sleeper = int(process.stdout.readline())
        raise KeyboardInterrupt
    deadline = time.monotonic() + 30
    while subprocess.run(["ps", "-o", "stat=", "-p", str(sleeper)], capture_output=True, text=True).stdout.strip(
        " Z\n"
    ):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_commands_see_this_python_and_the_folder_of_the_project():
    code, printed, _ = processes.shell("pwd; python -c 'import sys; print(sys.prefix)'")
    assert (code, printed.splitlines()) == (0, [str(processes.ROOT), sys.prefix])
