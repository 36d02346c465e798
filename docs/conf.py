"""Sphinx configuration. The tables of results are made here, from the committed JSON."""

import collections
import os
import re
import sys
from pathlib import Path

import wsss_blocks

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))

from result_tables import write_generated  # noqa: E402

project = "wsss-blocks"
author = copyright = "The wsss-blocks developers"
version = release = wsss_blocks.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx.ext.viewcode",
    "sphinx.ext.intersphinx",
    "sphinx_copybutton",
    "sphinx_gallery.gen_gallery",
    "myst_parser",
]
exclude_patterns = ["_build", "_generated", "api/generated/backrefs"]
templates_path = ["_templates"]
html_theme = "furo"
html_title = f"wsss-blocks {release}"

autosummary_generate = True
autodoc_inherit_docstrings = False
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_member_order = "bysource"
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_custom_sections = [("Args of a call", "params_style")]
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

offline = bool(os.environ.get("WSSS_OFFLINE_DOCS"))
intersphinx_mapping = (
    {}
    if offline
    else {
        "python": ("https://docs.python.org/3", None),
        "torch": ("https://docs.pytorch.org/docs/stable", None),
    }
)
nitpicky = True
nitpick_ignore_regex = [
    # Where something lives, not its public name: protocols and type variables of one file.
    (r"py:class", r"wsss_blocks\.\w+\.\w+\.\w+"),
]
if offline:
    nitpick_ignore_regex += [
        (r"py:.*", r"(torch|nn|Tensor|optional|numpy|collections|pathlib|os|Path)\b.*"),
        (r"py:.*", r"[a-z]+|typing\..*|(NamedTuple|TypedDict|Protocol|Iterator|Mapping)"),
    ]

sphinx_gallery_conf = {
    "examples_dirs": "../examples/gallery",
    "gallery_dirs": "gallery",
    "filename_pattern": r"/plot_",
    "abort_on_example_error": True,
    "backreferences_dir": "api/generated/backrefs",
    "doc_module": ("wsss_blocks",),
    "inspect_global_variables": True,
    "show_memory": False,
    "min_reported_time": 0,
}


def skip_fields(app, what, name, obj, skip, options):
    """Leave the fields of named tuples to the docstring of their class."""
    return True if isinstance(obj, type(collections.namedtuple("_", "x").x)) else None


def resolve_public(app, env, node, contnode):
    """Let ``wsss_blocks.cam.to_label.x``, where x lives, mean ``wsss_blocks.cam.x``, its name."""
    match = re.match(r"(wsss_blocks\.\w+)\.\w+\.(\w.*)$", node.get("reftarget", ""))
    if not match or node.get("refdomain") != "py":
        return None
    target = f"{match[1]}.{match[2]}"
    return env.domains["py"].resolve_xref(
        env, node["refdoc"], app.builder, node["reftype"], target, node, contnode
    )


def setup(app):
    write_generated()
    app.connect("autodoc-skip-member", skip_fields)
    app.connect("missing-reference", resolve_public)
