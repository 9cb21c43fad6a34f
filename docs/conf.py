"""How Sphinx builds the site (``make docs``)."""

import sys
from pathlib import Path

import tutelage

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = html_title = "tutelage"
author = copyright = "The tutelage authors"
version = release = tutelage.__version__
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "pictures",
    "reference",
    "repository",
]
exclude_patterns = ["_ext/**"]

html_theme = "furo"
pygments_dark_style = "a11y-dark"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_js_files = ["site.js"]
html_use_index = html_copy_source = html_show_sourcelink = html_show_sphinx = False

smartquotes = False  # "--" is two hyphens
myst_heading_anchors = 4  # GitHub's anchors of headings

autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
default_role = "py:obj"  # `name` in docstrings
maximum_signature_line_length = 90
napoleon_use_ivar = True
python_use_unqualified_type_names = True
