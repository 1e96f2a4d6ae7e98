"""The site of `make docs`: the pages as they lie in the repository, where a link that leads nowhere is an error."""

import shutil
from pathlib import Path

FIRST = (
    "docs/from-pytorch",
    "docs/techniques",
    "docs/extending",
    "docs/looking-inside",
    "docs/trackers",
    "docs/deploy",
    "docs/scaling",
    "docs/cpu",
    "docs/platforms",
    "RESULTS",
    "experiments",
    "docs/parity",
    "docs/reproducibility",
    "docs/reliability",
    "docs/security",
    "docs/architecture",
    "CONTRIBUTING",
    "CHANGELOG",
)

project = html_title = "jax_cifar"
copyright = "The jax_cifar authors"
root_doc = "README"
include_patterns = ["*.md", "docs/*.md"]
exclude_patterns = [".*", "build", "runs"]
extensions = ["myst_parser"]
myst_heading_anchors = 3  # as GitHub makes them
html_theme = "sphinx_book_theme"  # light and dark, as the reader's system is
html_theme_options = {"navbar_persistent": [], "use_download_button": False}  # one search is enough
html_copy_source = False
highlight_language = "text"


def add_contents(app, page, source):
    """The table of contents, which is of the site alone: whatever is not named above comes last."""
    if page == root_doc:
        others = sorted({f"docs/{path.stem}" for path in Path(app.srcdir, "docs").glob("*.md")} - {*FIRST})
        source[0] += "\n\n```{toctree}\n:hidden:\n\n" + "\n".join([*FIRST, *others]) + "\n```\n"


def add_front_page(app, error):
    """What a web server shows first."""
    if error is None:
        shutil.copy(app.outdir / f"{root_doc}.html", app.outdir / "index.html")


def setup(app):
    app.connect("source-read", add_contents)
    app.connect("build-finished", add_front_page)
