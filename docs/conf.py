"""The site of `make docs`: the pages as they lie in the repository, where a link that leads nowhere is an error."""

import shutil

CONTENTS = """

```{toctree}
:hidden:
:maxdepth: 1
:glob:

docs/from-pytorch
docs/techniques
docs/extending
docs/looking-inside
docs/trackers
docs/deploy
docs/scaling
docs/cpu
RESULTS
experiments
docs/parity
docs/reproducibility
docs/reliability
docs/security
docs/architecture
CONTRIBUTING
CHANGELOG
docs/*
```
"""

project = html_title = "jax_cifar"
copyright = "The jax_cifar authors"
root_doc = "README"
include_patterns = ["*.md", "docs/*.md"]
exclude_patterns = [".*", "build", "runs"]
extensions = ["myst_parser"]
myst_heading_anchors = 3  # as GitHub makes them
html_theme = "furo"  # light and dark, as the reader's system is
html_copy_source = False


def add_contents(app, page, source):
    """The table of contents, which is of the site alone."""
    if page == root_doc:
        source[0] += CONTENTS


def add_front_page(app, error):
    """What a web server shows first."""
    if error is None:
        shutil.copy(app.outdir / f"{root_doc}.html", app.outdir / "index.html")


def setup(app):
    app.connect("source-read", add_contents)
    app.connect("build-finished", add_front_page)
