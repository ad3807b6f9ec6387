"""The book: `_docs/` from the notebooks' saved outputs, in one go and offline.

    python scripts/book              # build it
    python scripts/book --settle     # take dead widgets out of the saved outputs of the notebooks (after running them)

Why Sphinx + myst-nb + sphinx-book-theme: it builds without a network and without running anything, inlines what notebooks saved, keeps its search
index in a script (so search works from a file), has a dark mode, and reads Python signatures. smalldocs, tried before, asks a CDN for its
mathematics, loses the first cell of the index, and finds nothing from a file; MyST's own themes come over the network; quarto cannot be installed by pip.
nbdev's processing is left out: it runs cells, and shows a signature where this course shows the code.
"""
import re, shutil, subprocess, sys, time
from importlib.util import find_spec
from pathlib import Path
import nbformat

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path[:0] = [str(HERE), str(ROOT)]
import pages
from distsmooth.engine.page import write_page
from distsmooth.pipeline import SmoothedModel

def settle():
    "Notebooks keep no dead widget: the picture that it drew last, and a sentence that says how to get the knob"
    for path in sorted((ROOT/'nbs').rglob('*.ipynb')):
        nb = nbformat.read(path, 4)
        if not any(pages.is_widget(o) for c in nb.cells for o in c.get('outputs', [])): continue
        states = nb.metadata.pop('widgets', {}).get(pages.STATE, {}).get('state', {})
        for c in nb.cells:
            if c.cell_type == 'code': c.outputs = pages.settled(c.outputs, states)
        path.write_text(nbformat.writes(nb) + '\n', encoding='utf8')
        print(path.relative_to(ROOT))

def small(match):
    "Minutes, and a mark where the three-hour path goes"
    mark = '<abbr title="on the three-hour path">◆</abbr> ' if '◆' in match[1] else ''
    return f'<span class="minutes">{mark}{match[1].replace("◆", "").strip()}</span>'

FOR_READERS = [  # what the theme and Sphinx leave for a screen reader to stumble over
    (r'(<button class="btn search-button-field[^>]*) aria-label="Search"', r'\1'),
    (r'<summary>(?=<span class="toctree-toggle")', '<summary aria-label="Its pages">'),
    (r'<dl>\s*((?:<dd><em class="sig-param">.*?</dd>\s*)+)</dl>', lambda m: '<span class="sig-params">' + m[1].replace('<dd>', '<span>').replace('</dd>', '</span>') + '</span>'),
]

def finish(docs):
    "What is easier said about finished pages; and the font that formulas are set in"
    shutil.copy(Path(find_spec('ziamath').origin).parent/'fonts'/'STIXTwoMath-Regular.ttf', docs/'_static')
    shutil.rmtree(docs/'_sources', ignore_errors=True)
    for path in docs.rglob('*.html'):
        if 'play' in path.relative_to(docs).parts: continue
        text = re.sub(r'¦([^¦<]*)¦', small, path.read_text(encoding='utf8'))
        for wrong, right in FOR_READERS: text = re.sub(wrong, right, text)
        path.write_text(text, encoding='utf8')

def build(work=ROOT/'_book', docs=ROOT/'_docs'):
    "All pages; a warning stops it, for a broken link is one"
    start, made = time.time(), work/'html'
    shutil.rmtree(work, ignore_errors=True)
    bare = pages.write(ROOT, work/'source')
    if bare: raise SystemExit(f'pictures without words (write "#| fig-alt: ..." into the cell): {bare}')
    subprocess.run([sys.executable, '-m', 'sphinx', '-q', '-W', '--keep-going', '-b', 'html', '-c', str(HERE), '-d', str(work/'doctrees'), str(work/'source'), str(made)], check=True)
    for model, (play, _, label) in pages.PLAYS.items(): write_page((made/play).parent, SmoothedModel.from_pretrained(model), label=label)
    finish(made)
    shutil.rmtree(docs, ignore_errors=True)
    shutil.move(made, docs)
    print(f'{docs}/index.html, {len(list(docs.rglob("*.html")))} pages, {time.time() - start:.0f} s')

if __name__ == '__main__': settle() if '--settle' in sys.argv else build()
