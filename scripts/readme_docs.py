"""Write README.md from nbs/index.ipynb, and the pages in _docs from all notebooks (nbdev's processing, drawn by smalldocs; no quarto needed).

    python scripts/readme_docs.py           # both
    python scripts/readme_docs.py --check   # only say whether README.md is fresh
"""
import re, shutil, subprocess, sys
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

def site(cfg):
    "The pages, in cfg.doc_path"
    from nbdev.quarto import nbdev_sidebar, refresh_quarto_yml
    from nbdev.serve import proc_nbs
    refresh_quarto_yml()
    nbdev_sidebar.__wrapped__()
    work = cfg.config_path/'_site_src'
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(proc_nbs(force=True, n_workers=2), work, ignore=shutil.ignore_patterns(cfg.doc_path.name))
    pages, texts = sorted(work.rglob('*.ipynb')), [work/'sidebar.yml']
    names = {p.name: re.sub(r'^\d+_', '', p.name) for p in pages}  # masked.html, not 03_masked.html: the name that nbdev's links use
    texts += [p.rename(p.with_name(names[p.name])) for p in pages]
    for path in texts:
        text = path.read_text(encoding='utf8')
        for old, new in names.items(): text = text.replace(old, new)
        path.write_text(text, encoding='utf8')
    (work/'styles.css').write_text('')
    subprocess.run(['smalldocs', 'render', str(work)], check=True)
    shutil.rmtree(cfg.doc_path, ignore_errors=True)
    shutil.move(work/cfg.doc_path.name, cfg.doc_path)

if __name__ == '__main__':
    cfg = get_config()
    text, path = readme(cfg), cfg.config_path/'README.md'
    if '--check' in sys.argv: sys.exit(0 if path.read_text(encoding='utf8') == text else 'README.md is not what nbs/index.ipynb says: run scripts/readme_docs.py')
    path.write_text(text, encoding='utf8')
    site(cfg)
