"""Sphinx's settings. The folder that it reads is written by assemble.py."""

import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = next(p for p in HERE.parents if (p / "pyproject.toml").is_file())
sys.path.insert(0, str(ROOT))
os.environ.setdefault("OMP_NUM_THREADS", "1")

import dither  # noqa: E402

project = "dither"
author = "the dither authors"
project_copyright = author
version = release = dither.__version__
language = "en-GB"

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
    "sphinxcontrib.katex",
    "docs.site._ext.docstrings",
]
templates_path = ["_templates"]
exclude_patterns = ["_static", "_templates", "gallery", "**/__pycache__"]
suppress_warnings = ["config.cache"]

# Markdown: formulae in $…$ and in fences, as on the repository's pages.
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_fence_as_directive = ["math"]
myst_heading_anchors = 4
myst_dmath_allow_digits = False
myst_links_external_new_tab = True

# KaTeX from this folder: no server, no network.
katex_css_path = "katex/katex.min.css"
katex_js_path = "katex.min.js"
katex_autorender_path = "auto-render.min.js"
katex_prerender = False
katex_options = r'{strict: false, throwOnError: false, macros: {"\\eps": "\\varepsilon"}}'

autosummary_generate = True
autodoc_typehints = "none"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
add_module_names = False
default_role = "code"
smartquotes = False
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
copybutton_only_copy_prompt_lines = True

sphinx_gallery_conf = {
    "examples_dirs": str(HERE / "gallery"),
    "gallery_dirs": "examples",
    "filename_pattern": r"\.py$",
    "ignore_pattern": r"__init__\.py|conftest\.py",
    "within_subsection_order": "docs.site._ext.galleryorder.InOrder",
    "backreferences_dir": "api/backreferences",
    "doc_module": ("dither",),
    "reference_url": {"dither": None},
    "prefer_full_module": {r"dither\.measures\.\w+"},
    "download_all_examples": False,
    "write_computation_times": False,
    "show_memory": False,
    "thumbnail_size": (460, 260),
    "show_signature": False,
    "remove_config_comments": True,
    "matplotlib_animations": False,
    "abort_on_example_error": True,
    "image_scrapers": ("matplotlib",),
    "reset_modules": ("matplotlib",),
    "min_reported_time": 10_000,
    "default_thumb_file": str(HERE / "_static" / "mark.png"),
}

html_theme = "pydata_sphinx_theme"
html_title = "dither"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {
    "logo": {"text": "dither"},
    "navbar_align": "left",
    "header_links_before_dropdown": 8,
    "navbar_end": ["theme-switcher"],
    "navbar_persistent": ["search-button"],
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
    "show_prev_next": True,
    "search_as_you_type": False,
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "github-dark",
    "back_to_top_button": True,
    "use_edit_page_button": False,
}
ALONE = "index which coming_from math gotchas scaling cost reliability source/**"
html_sidebars = {page: [] for page in ALONE.split()}
