"""How the site is built: `make docs`, with Sphinx. Every dead link, name or example file is an error."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "site"))

from convspark import __version__

project = "convspark"
author = "the convspark developers"
copyright = "the convspark developers, Apache-2.0"
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton", "command_help"]
exclude_patterns = ["drawing", "site"]
suppress_warnings = ["misc.highlighting_failure"]  # a block of output that is no language is shown as it is

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 4

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
python_maximum_signature_line_length = 100

html_theme = "furo"
html_title = "convspark"
html_static_path = ["site/static"]
html_css_files = ["site.css"]
html_js_files = ["site.js"]
html_copy_source = False
copybutton_exclude = ".linenos, .gp, .go"
