"""Write README.md from nbs/index.ipynb.

    python scripts/readme.py           # write it
    python scripts/readme.py --check   # only say whether README.md is fresh
"""
import re, sys
import nbformat
from nbconvert import MarkdownExporter
from nbdev.config import get_config

def readme(cfg):
    "README.md as text: the visible cells of the index, its pictures named from the top level"
    nb = nbformat.read(cfg.nbs_path/cfg.readme_nb, 4)
    nb.cells = [c for c in nb.cells if c.cell_type != 'raw' and not re.match(r'#\s*\|\s*hide\b', c.source)]
    nb.metadata['language_info'] = {'name': 'python'}
    body, _ = MarkdownExporter().from_notebook_node(nb)
    body = re.sub(r'\]\((images/|[\w/]+\.ipynb)', r'](nbs/\1', body)
    body = body.replace('](../', '](')
    return f'<!-- Written from nbs/{cfg.readme_nb}: change that. -->\n\n' + re.sub(r'\n{3,}', '\n\n', body).strip() + '\n'

if __name__ == '__main__':
    cfg = get_config()
    text, path = readme(cfg), cfg.config_path/'README.md'
    if '--check' not in sys.argv: path.write_text(text, encoding='utf8')
    elif path.read_text(encoding='utf8') != text: sys.exit('README.md is not what nbs/index.ipynb says: run scripts/readme.py')
