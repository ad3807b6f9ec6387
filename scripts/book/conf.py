"""How Sphinx draws the book: nothing runs, nothing is fetched, and a page works from a file."""
import sys
from pathlib import Path
sys.path.insert(0, str(Path(__file__).parent))

project, author = 'distsmooth', 'distsmooth authors'
copyright = '2026 onwards, distsmooth authors'
extensions = ['myst_nb', 'mathml']
exclude_patterns = []

nb_execution_mode = 'off'
nb_merge_streams = True
nb_render_markdown_format = 'myst'  # tables, too
nb_ipywidgets_js = {}
myst_enable_extensions = ['dollarmath', 'fieldlist']
myst_heading_anchors = 4
myst_update_mathjax = False
html_math_renderer = 'mathml'

add_module_names = False
python_maximum_signature_line_length = 84
python_use_unqualified_type_names = True
toc_object_entries_show_parents = 'hide'

html_theme = 'sphinx_book_theme'
html_title = 'distsmooth'
html_context = {'default_mode': 'auto'}
html_static_path = ['static']
html_css_files = ['book.css']
html_js_files = ['book.js']
html_copy_source = False
html_show_search_summary = False  # it is fetched, and nothing can be fetched from a file
html_show_sphinx = False
html_use_index = html_domain_indices = False
html_theme_options = {
    'use_download_button': False, 'use_repository_button': False, 'use_issues_button': False, 'use_edit_page_button': False,
    'home_page_in_toc': True, 'navbar_persistent': [], 'show_navbar_depth': 1, 'show_toc_level': 2, 'navigation_with_keys': False,
    'pygments_light_style': 'a11y-high-contrast-light', 'pygments_dark_style': 'a11y-high-contrast-dark',
}
suppress_warnings = ['misc.highlighting_failure', 'mystnb.unknown_mime_type', 'config.cache']
