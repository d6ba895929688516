"""The configuration of Sphinx: `make docs` builds build/docs/index.html."""

from __future__ import annotations

import streamrnn

project = "StreamRNN"
author = "the StreamRNN authors"
copyright = author
release = version = streamrnn.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
source_suffix = {".md": "markdown"}
myst_heading_anchors = 3

html_theme = "furo"
html_title = f"StreamRNN {version}"

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_type_aliases = {"ArrayLike": "ArrayLike", "NDArray": "NDArray"}
autodoc_default_options = {"members": True, "show-inheritance": True}
napoleon_google_docstring = False
napoleon_use_rtype = False
napoleon_use_param = False
napoleon_use_ivar = True
# Vectors of the wire are shown as "hex", which no lexer knows; both packages have an InputError.
suppress_warnings = ["misc.highlighting_failure", "ref.python"]
