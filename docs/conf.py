"""How Sphinx builds the site (``make docs``)."""

import sys
from pathlib import Path

import tutelage

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "tutelage"
author = "The tutelage authors"
copyright = author
version = release = tutelage.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton", "pictures"]
exclude_patterns = ["_ext/**"]
html_theme = "furo"
html_static_path = ["_static"]
html_title = "tutelage"
myst_heading_anchors = 4  # GitHub's anchors of headings
