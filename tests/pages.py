"""The pages for users, and what is in them."""

import ast
import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "docs" / "examples"
PAGES = [
    ROOT / name
    for name in (
        "README.md",
        "RESULTS.md",
        "CONTRIBUTING.md",
        "docs/from-pytorch.md",
        "docs/techniques.md",
        "docs/extending.md",
        "docs/looking-inside.md",
        "docs/trackers.md",
        "docs/scaling.md",
        "docs/cpu.md",
        "docs/reproducibility.md",
        "docs/architecture.md",
        "docs/deploy.md",
        "docs/security.md",
        "docs/reliability.md",
        "docs/platforms.md",
    )
]
TEXT = {page.name: page.read_text() for page in PAGES}
SCRIPTS = {path.name: ast.get_docstring(ast.parse(path.read_text())) or "" for path in ROOT.glob("scripts/*.py")}


def blocks(page, language=""):
    """The fenced blocks of a page in one language."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", TEXT[page], re.MULTILINE | re.DOTALL)
    return [text for found, text in fenced if found == language]


def commands():
    """Every `python ...` command of the pages and of the scripts' docstrings, without its comment."""
    lines = [line for page in TEXT for block in blocks(page) for line in block.splitlines()]
    lines += [line.strip() for text in SCRIPTS.values() for line in text.splitlines()]
    lines += [code for page in TEXT for code in re.findall(r"`(python [^`]*)`", TEXT[page])]
    return sorted({line.partition("  #")[0].strip() for line in lines if line.startswith("python ")})


@cache
def definitions(path):
    """The top-level functions, classes and constants of a file, and the methods as `Class.method`."""
    tree, found = ast.parse(path.read_text()), set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{each.name}" for each in node.body if isinstance(each, ast.FunctionDef)}
    return found
