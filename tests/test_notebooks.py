"""The notebooks: clean as they lie in the repository, and run from top to bottom with small settings."""

import ast
import importlib.util
import os
import re
import shlex
import sys
from pathlib import Path

import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "notebooks"
NAMES = sorted(path.name for path in FOLDER.glob("*.ipynb"))

# What a Colab has of its own: the module, and there the cells that use it.
PLANTED = """
import types

import numpy as np

mounted = []
drive = types.SimpleNamespace(mount=mounted.append)
buffer = io.BytesIO()
PIL.Image.fromarray(np.full((40, 60, 3), 200, np.uint8)).save(buffer, "jpeg")
files = types.SimpleNamespace(upload=lambda: {"one.jpg": buffer.getvalue(), "two.txt": b"no picture"})
colab = types.SimpleNamespace(drive=drive, files=files)
sys.modules |= {"google": types.SimpleNamespace(colab=colab), "google.colab": colab}
COLAB = True
"""


def read(name):
    return nbformat.read(FOLDER / name, as_version=4)


def code_of(name):
    return [cell for cell in read(name).cells if cell.cell_type == "code"]


def the_cell(name, text):
    """The one code cell with this text in it."""
    (found,) = [cell for cell in code_of(name) if text in cell.source]
    return found


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_valid_and_holds_no_results(name):
    notebook = read(name)
    nbformat.validate(notebook)
    for cell in code_of(name):
        assert cell.outputs == [] and cell.execution_count is None
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)
    assert notebook.metadata.keys() == {"kernelspec", "language_info"}


@pytest.mark.parametrize("name", NAMES)
def test_every_cell_compiles(name):
    for cell in code_of(name):
        compile(TransformerManager().transform_cell(cell.source), name, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


def test_the_notebooks_begin_with_the_same_installation():
    assert NAMES == ["colab.ipynb", "lesson.ipynb"]
    first, second = ([cell.source for cell in code_of(name)[:2]] for name in NAMES)
    assert first == second and first[0].startswith('REPOSITORY = ""')


@pytest.mark.parametrize("name", NAMES)
def test_a_command_takes_a_folder_with_a_space_in_its_name(name):
    lines = [line for cell in code_of(name) for line in cell.source.splitlines() if re.match(r"\s*[!%]", line)]
    folders = dict.fromkeys(("RUNS", "ROOT", "REPOSITORY"), "/with a space")
    words = [word for line in lines for word in shlex.split(line.format(**folders, SMALL=""))]
    assert any(word.startswith("/with a space") for word in words) and "/with" not in words


def test_the_commands_of_a_notebook_find_the_library_that_is_not_installed(monkeypatch):
    monkeypatch.chdir(FOLDER)
    monkeypatch.setattr(sys, "path", [*sys.path])
    for variable, value in (("PATH", os.environ["PATH"]), ("TERM", ""), ("PYTHONPATH", "others")):
        monkeypatch.setenv(variable, value)
    _, cell = code_of("colab.ipynb")[:2]
    exec(TransformerManager().transform_cell(cell.source), {"REPOSITORY": ""})
    assert os.environ["PYTHONPATH"].split(os.pathsep) == [str(ROOT), "others"]


@pytest.mark.parametrize("name", NAMES)
def test_the_files_that_a_notebook_names_exist(name):
    text = "\n".join(cell.source for cell in read(name).cells)
    named = set(re.findall(r"\b(?:scripts|configs|docs|notebooks)/[\w/]+\.(?:py|md|ipynb)\b", text))
    named |= {f"notebooks/{link}" for link in re.findall(r"\]\((\w+\.ipynb)\)", text)}
    assert named and [path for path in named if not (ROOT / path).is_file()] == []


def test_each_section_of_the_lesson_has_a_picture_and_a_question_with_its_answer_hidden():
    text = "".join(f"{cell.source}\n" for cell in read("lesson.ipynb").cells)
    sections = re.split(r"^## \d+\. ", text, flags=re.MULTILINE)[1:]
    assert len(sections) == 13
    for section in sections:
        title = section.partition("\n")[0]
        assert section.count("**Question.**") == section.count("<details><summary>Answer</summary>") == 1, title
        assert section.count("</details>") == 1, title
        assert re.search(r"plt\.show\(\)|^show\(|^Image\(", section, re.MULTILINE), title


@pytest.fixture
def execute(tmp_path, monkeypatch):
    """Run cells in the order given in a kernel of this environment, small, with all that they write in a folder."""
    for variable in ("TMPDIR", "IPYTHONDIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "JAX_CIFAR_RUNS"):
        monkeypatch.setenv(variable, str(tmp_path))
    monkeypatch.setenv("JAX_CIFAR_SMALL", "1")

    def run(name, *more):
        notebook = read(name)
        notebook.cells += more
        resources = {"metadata": {"path": FOLDER}}
        NotebookClient(notebook, timeout=600, kernel_name="python3", resources=resources).execute()
        return notebook

    return run


def outputs_of(notebook, text):
    """What stands below the first cell with this text in it, in order: strings, and displays by their types."""
    cell = next(cell for cell in notebook.cells if cell.cell_type == "code" and text in cell.source)
    found = []
    for each in cell.outputs:
        if each.output_type != "stream":
            found.append(each.data)
        elif found and isinstance(found[-1], str):
            found[-1] += each.text
        else:
            found.append(each.text)
    return found


def complaints(notebook):
    """Lines on standard error, but for what the cells do with intent, and errors that a command printed."""
    streams = [each for cell in notebook.cells for each in cell.get("outputs", []) if each.output_type == "stream"]
    return [each.text for each in streams if each.name == "stderr" or re.search(r"^(error|Traceback)", each.text, re.M)]


@pytest.mark.slow
def test_the_notebook_for_colab_runs_from_top_to_bottom_also_with_what_only_a_colab_has(execute, tmp_path):
    settings = the_cell("colab.ipynb", "DRIVE = False")
    for here, there in (("DRIVE = False", "DRIVE = True"), ("/content", f"{tmp_path}/content")):
        settings.source = settings.source.replace(here, there)
    picture = the_cell("colab.ipynb", "files.upload()")
    planted = nbformat.v4.new_code_cell(PLANTED)
    notebook = execute("colab.ipynb", planted, picture, settings, nbformat.v4.new_code_cell("mounted, RUNS"))
    assert complaints(notebook) == []

    before, table, after = outputs_of(notebook, "result = train(")
    assert before.startswith("versions") and "results" in after
    assert len(table["text/plain"].splitlines()) == 4 and "<table" in table["text/html"]

    assert outputs_of(notebook, "Vanish()")[-1] == "The runtime is lost.\n"
    before, _, after = outputs_of(notebook, "resumed = train(")
    assert "resuming at step" in before
    first, second = re.findall(r"test loss (\S+)\n", after)
    assert first == second
    onnx = all(importlib.util.find_spec(name) for name in ("torch", "onnx", "onnxscript", "onnxruntime"))
    assert (tmp_path / "quickstart.stablehlo").exists() and (tmp_path / "quickstart.onnx").exists() == onnx

    last = notebook.cells[-1].outputs[0].data["text/plain"]
    assert "content/drive" in last and (tmp_path / "content/drive/MyDrive/jax_cifar/data").is_dir()
    shown, told = [each.get("text", "") for each in notebook.cells[-3].outputs]
    assert shown == "" and "no picture" in told


@pytest.mark.slow
def test_the_lesson_runs_from_top_to_bottom(execute):
    notebook = execute("lesson.ipynb")
    assert complaints(notebook) == []
    outputs = [each for cell in notebook.cells for each in cell.get("outputs", [])]
    assert sum("image/png" in each.get("data", {}) for each in outputs) >= 20
    _, table, _ = outputs_of(notebook, "fit(loud=True)")
    assert "<table" in table["text/html"]
