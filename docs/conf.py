"""Sphinx configuration: sphinx-build -W docs docs/_build/html"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]

import ipython1  # noqa: E402

project = "ipython1"
author = "the ipython1 developers"
version = release = ipython1.__version__

extensions = ["IPython.sphinxext.ipython_console_highlighting", "from_code"]
exclude_patterns = ["_build"]
html_theme = "alabaster"
html_theme_options = {"description": "Interactive parallel computing in Python 3"}
html_show_sourcelink = False
nitpicky = True
smartquotes = False
