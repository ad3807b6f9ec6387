"""Notebooks and texts as Sphinx reads them: directives dropped, links turned to pages, pictures told in words, dead widgets replaced."""
import ast, os, re, shutil
from dataclasses import dataclass
from pathlib import Path
import nbformat, yaml
import api

KNOB = 'Run this cell to get the knob.'  # what a notebook keeps where a widget stood

@dataclass
class Entry:
    "One notebook of the reading order"
    path: str  # below nbs/
    on_path: bool = False  # on the three-hour path
    minutes: int = None  # to read it; as the notebook says, unless nbs/sidebar.yml says so

def entry(item):
    "`course/01_toys.ipynb`, or a mapping with `href`, and `path: true`, and `minutes` where they differ from what the notebook says"
    if isinstance(item, str): return Entry(item)
    return Entry(item['href'], item.get('path', False), item.get('minutes'))

def reading_order(nbs):
    "[(section, entries)] of nbs/sidebar.yml"
    contents = yaml.safe_load((nbs/'sidebar.yml').read_text(encoding='utf8'))['website']['sidebar']['contents']
    parts = [(part['section'], [entry(e) for e in part['contents']]) for part in contents if isinstance(part, dict) and 'section' in part]
    listed = {e.path for _, entries in parts for e in entries} | {'index.ipynb'}
    there = {p.relative_to(nbs).as_posix() for p in nbs.rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts}
    if listed != there: raise SystemExit(f'nbs/sidebar.yml and the notebooks differ: {sorted(listed ^ there)}')
    return parts

def title(nb):
    "What the first line says"
    return re.match(r'#\s+(.+)', nb.cells[0].source)[1].strip()

def minutes(nb):
    "How long a notebook says that it takes"
    found = re.search(r'[Aa]bout (\d+) minutes', '\n'.join(c.source for c in nb.cells[:4] if c.cell_type == 'markdown'))
    return found and int(found[1])

def label(entry, nb):
    "The line in the sidebar; what stands after the bar is drawn smaller"
    number = re.match(r'course/(\d+)_', entry.path)
    time = entry.minutes or minutes(nb)
    name = (f'{int(number[1])}. ' if number else '') + title(nb)
    more = '◆' * bool(entry.on_path) + (f' {time} min' if time else '')
    return name + (f' ¦{more.strip()}¦' if more else '')

# pictures in words

KINDS = {'imshow': 'images', 'image_grid': 'images', 'plot': 'curves', 'loglog': 'curves', 'semilogx': 'curves', 'semilogy': 'curves', 'fill_between': 'bands', 'scatter': 'points',
         'bar': 'bars', 'barh': 'bars', 'hist': 'a histogram', 'step': 'steps', 'contour': 'contours', 'contourf': 'contours', 'pcolormesh': 'a map of colours', 'errorbar': 'points with error bars',
         'stem': 'stems', 'matshow': 'images', 'axvline': 'a line', 'axhline': 'a line'}

def words(node):
    "A string in the code; what is computed in it becomes dots"
    if isinstance(node, ast.Constant) and isinstance(node.value, str): return node.value
    if isinstance(node, ast.JoinedStr): return ''.join(v.value if isinstance(v, ast.Constant) else '...' for v in node.values)
    return ''

def parsed(code):
    try: return ast.parse(re.sub(r'^\s*[%!].*', '', code, flags=re.M))
    except SyntaxError: return ast.parse('')

def defined(code): return {n.name: n for n in ast.walk(parsed(code)) if isinstance(n, ast.FunctionDef)}

def drawn(tree, helpers, done=()):
    "(what, text) of all that code draws, with the functions that it calls; `what` is kind, title, x, y or label"
    for n in ast.walk(tree):
        name = n.func.attr if isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute) else n.id if isinstance(n, ast.Name) else ''
        if name in helpers and name not in done: yield from drawn(helpers[name], helpers, (*done, name))
        if not isinstance(n, ast.Call): continue
        name = name or getattr(n.func, 'id', '')
        if name in KINDS and isinstance(n.func, ast.Attribute): yield 'kind', KINDS[name]
        what = {'set_title': 'title', 'suptitle': 'title', 'set_xlabel': 'x', 'set_ylabel': 'y'}.get(name)
        if what and n.args: yield what, words(n.args[0])
        for k in n.keywords: yield {'title': 'title', 'xlabel': 'x', 'ylabel': 'y', 'label': 'label'}.get(k.arg, ''), words(k.value)
        if name == 'draw_rows' and n.args and isinstance(n.args[0], ast.Dict): yield from (('row', words(k)) for k in n.args[0].keys if k)

def plain_words(markdown): return ' '.join(re.sub(r'\]\([^)]*\)|[`*_$\[\]\\{}#]', '', markdown).split())

def sentence(markdown):
    "The last sentence of a text, without markup"
    text = re.sub(r'```.*?```|<details.*?</details>|<[^>]+>', ' ', markdown, flags=re.S)
    text = [p for p in re.split(r'\n\s*\n', text) if p.strip() and not p.lstrip().startswith(('#', '|', '$$', '>'))]
    return re.split(r'(?<=[.?!:])\s+(?=[A-Z])', plain_words(' '.join(text[-1:])))[-1].rstrip(':').strip()

def description(code, helpers):
    "Kind, titles, axes and labels of a figure, as its code says"
    seen = {}
    for what, text in drawn(parsed(code), helpers):
        if what and text.strip('. $') and text not in seen.setdefault(what, []): seen[what].append(text)
    get = lambda what: plain_words(', '.join(seen.get(what, [])))
    parts = [' and '.join(seen.get('kind', [])[:3]), get('title'), get('row') and f'rows: {get("row")}', get('x') and f'across: {get("x")}', get('y') and f'up: {get("y")}', get('label')]
    return '; '.join(p for p in parts if p)

def alternative(cell, before, heading, helpers):
    "A picture in words: what the cell says (`#| fig-alt: ...`), or what its code draws, and the heading or the sentence that leads to it"
    said = re.search(r'^#\s*\|\s*fig-alt:\s*(.+)', cell.source, re.M)
    if said: return said[1].strip().strip('"\'')
    what = description(cell.source, helpers)
    text = f'{heading}: {what}' if ';' in what else f'{what}. {sentence(before)}'.strip('. ')
    return text if len(text) <= 400 else text[:397].rsplit(' ', 1)[0] + '...'

def pictures(cell): return [o for o in cell.get('outputs', []) if any(k.startswith('image/') for k in o.get('data', {}))]

def describe(nb, helpers):
    "Says each picture in words; returns the ids of the cells where nothing is said"
    before, heading, helpers, bare = '', title(nb), dict(helpers), []
    for c in nb.cells:
        if c.cell_type == 'markdown':
            before, headings = c.source, re.findall(r'^#+\s+(.+)', re.sub(r'```.*?```', '', c.source, flags=re.S), re.M)
            if headings: heading = plain_words(headings[-1])
        elif c.cell_type == 'code':
            helpers |= defined(c.source)
            if not pictures(c): continue
            alt = alternative(c, before, heading, helpers)
            c.metadata['mystnb'] = {'image': {'alt': alt}}
            if not alt: bare.append(c.id)
    return bare

# outputs

VIEW, STATE = (f'application/vnd.jupyter.widget-{what}+json' for what in ('view', 'state'))

def is_widget(output): return VIEW in output.get('data', {})
def text_of(output): return ''.join(output.get('text', '') or output.get('data', {}).get('text/plain', ''))
def is_progress(output): return bool(re.search(r'\d+%\||HBox\(|\d+/\d+ \[[\d:]+<', text_of(output)))

def stills(model_id, states):
    "What was last drawn in a widget or below it, from the saved states of all"
    state = states.get(model_id, {}).get('state', {})
    yield from (nbformat.from_dict(o) for o in state.get('outputs', ()) if 'image/png' in o.get('data', {}))
    for child in state.get('children', ()): yield from stills(child.removeprefix('IPY_MODEL_'), states)

def settled(outputs, states={}):
    "Outputs without widgets, which are dead without a kernel: a bar of progress goes, a knob leaves its picture and a sentence"
    kept = []
    for o in outputs:
        if is_progress(o) and (is_widget(o) or o.get('name') == 'stderr'): continue
        if is_widget(o):
            kept += stills(o['data'][VIEW]['model_id'], states)
            o = nbformat.v4.new_output('display_data', {'text/plain': KNOB})
        kept.append(o)
    return kept

PLAYS = {'digits': ('play/play.html', 'digits', None), 'cifar10-16': ('play/cifar10-16/play.html', 'photographs', 8)}  # model: page below the book, what it draws, the class it begins with
FRAME = '<iframe class="playground" loading="lazy" src="{}" title="Playground: {} drawn at the noise level that you choose"></iframe>'

def frame(model, up=0):
    "The playground of a model, on a page `up` folders below the book"
    play, things, _ = PLAYS[model]
    return FRAME.format('../'*up + play, things)

def model_of(nb):
    "The bundled model that a notebook loads: that of its playground"
    return next((model for model in PLAYS if any(f"from_pretrained('{model}')" in c.source for c in nb.cells)), 'digits')

def knob(code, path, model):
    "What the page shows where the notebook has a live knob: the playground, if that knob draws images at a noise level"
    if re.search(r'playground\(|draw_ways_back\(', code):
        return frame(model, path.count('/'))
    return f'<p class="knob">A live knob: open <code>nbs/{path}</code> in Jupyter (<code>make lab</code>) to turn it.</p>'

def shown(outputs, code, path, model='digits'):
    outputs = [nbformat.v4.new_output('display_data', {'text/html': knob(code, path, model)}) if text_of(o) == KNOB else o for o in settled(outputs)]
    return [o for o in outputs if o.get('data') or re.sub(r'\x1b\[[\d;]*\w|\s', '', text_of(o))]

# links

class Links:
    "Where files of the repository stand in the book; what is linked and not there yet is added"
    def __init__(self, root, work):
        self.root, self.work, self.extra = root, work, {}
    def place(self, path):
        "Where a file of the repository goes, below the book's source"
        if path.startswith('nbs/'): return path.removeprefix('nbs/')
        name = re.sub(r'/README(?=\.md$)', '', path)
        return ('about/' + name.replace('/', '-').lower()) if path.endswith('.md') else 'files/' + path
    def turned(self, target, path):
        "A link of the file `path` as a link of its page"
        address, hash, anchor = target.partition('#')
        there = os.path.normpath(os.path.join(os.path.dirname(path), address))
        if not address or '://' in target or target.startswith('mailto:') or not (self.root/there).exists(): return target
        place = self.place(there)
        if there not in self.extra and not there.startswith('nbs/'): self.extra[there] = place
        return os.path.relpath(place, os.path.dirname(self.place(path))) + hash + anchor
    def text(self, markdown, path): return re.sub(r'(\]\()([^)\s]+)(?=[)\s])', lambda m: m[1] + self.turned(m[2], path), markdown)
    def write_texts(self):
        "The texts and files that pages link to"
        done = set()
        while todo := set(self.extra) - done:
            for path in todo:
                source, out = self.root/path, self.work/self.extra[path]
                out.parent.mkdir(parents=True, exist_ok=True)
                if path.endswith('.md'):
                    out.write_text(self.text(re.sub(r'\A---\n.*?\n---\n', '', source.read_text(encoding='utf8'), flags=re.S), path), encoding='utf8')
                else: shutil.copy(source, out)
                done.add(path)
        name = lambda path, out: f'Model card: {Path(path).parent.name} <{out[:-3]}>' if path.endswith('README.md') else out[:-3]
        return sorted(name(path, out) for path, out in self.extra.items() if path.endswith('.md'))

FENCES = re.compile(r'(^(?:```|~~~).*?^(?:```|~~~)\s*$|^#.*$|<summary>.*?</summary>|!?\[[^\]]*\]\([^)]*\))', re.S | re.M)

def named(markdown, where):
    "Public names in prose link to their page, the first time in each cell; code blocks, headings and links stay"
    seen = set()
    def once(m):
        if m[1] not in where or m[1] in seen: return m[0]
        seen.add(m[1])
        return api.linked(m[0], where)
    return ''.join(p if i % 2 else re.sub(r'(?<!\{py:obj\})`([\w.]+)`', once, p) for i, p in enumerate(FENCES.split(markdown)))

# one notebook

def page(nb, path, links, where):
    "A notebook as the book shows it"
    cells, model = [], model_of(nb)
    for c in nb.cells:
        if c.cell_type == 'raw' or re.search(r'^#\s*\|\s*(hide|default_exp)\b', c.source, re.M): continue
        if c.cell_type == 'markdown':
            c.source = named(links.text(c.source, f'nbs/{path}'), where)
        else:
            c.outputs = shown(c.outputs, c.source, path, model)
            if re.search(r'^#\s*\|\s*export', c.source, re.M): c.metadata['tags'] = ['exported']
            c.source = re.sub(r'^#\s*\|.*\n?', '', c.source, flags=re.M).strip('\n')
            if not c.source and not c.outputs: continue
        cells.append(c)
    nb.cells = cells
    nb.metadata = {'kernelspec': nb.metadata.get('kernelspec', {}), 'language_info': {'name': 'python', 'pygments_lexer': 'ipython3'}}
    return nb

PLAYGROUND = '''# Playground

Turn a knob and see fresh digits, drawn by your browser alone. <a href="{}">On a page of its own</a>

{}

## Photographs

CIFAR-10, averaged to 16 × 16. A ship, to begin with; the menu has ten classes. <a href="{}">On a page of its own</a>

{}
'''

def toctree(caption, lines): return f'```{{toctree}}\n:hidden:\n:caption: {caption}\n\n' + '\n'.join(lines) + '\n```\n'

def write(root, work):
    "The book's source below `work`; returns the cells that have a picture without words"
    nbs, links = root/'nbs', Links(root, work)
    parts, modules = reading_order(nbs), api.modules(root/'distsmooth')
    where = api.places(modules)
    books = {e.path: nbformat.read(nbs/e.path, 4) for _, entries in parts for e in entries} | {'index.ipynb': nbformat.read(nbs/'index.ipynb', 4)}
    helpers = defined((root/'distsmooth'/'plots.py').read_text(encoding='utf8'))
    titles, bare = {path: title(nb) for path, nb in books.items()}, {path: ids for path, nb in books.items() if (ids := describe(nb, helpers))}
    trees = [toctree(section + ' · ◆ three-hour path'*any(e.on_path for e in entries), [f'{label(e, books[e.path])} <{e.path.removesuffix(".ipynb")}>' for e in entries]) for section, entries in parts]
    for path, nb in books.items():
        books[path] = page(nb, path, links, where)
    shutil.copytree(nbs/'images', work/'images')
    (work/'api').mkdir()
    for m in modules: (work/'api'/f'{m.name}.md').write_text(api.page(m, where, titles[m.notebook]), encoding='utf8')
    (work/'api'/'index.md').write_text(api.contents(modules), encoding='utf8')
    for name in ('CHANGELOG.md', 'CONTRIBUTING.md'): links.extra.setdefault(name, links.place(name))
    texts = links.write_texts()
    (digits, *_), (colour, *_) = PLAYS.values()
    playground = PLAYGROUND.format(digits, frame('digits'), colour, frame('cifar10-16'))
    (work/'playground.md').write_text(playground, encoding='utf8')
    trees.insert(0, toctree('Try', ['Playground <playground>']))
    trees.append(toctree('Reference', ['Every public name <api/index>', *texts]))
    books['index.ipynb'].cells += [nbformat.v4.new_markdown_cell(t) for t in trees]
    for path, nb in books.items():
        (work/path).parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(nb, work/path)
    return bare
