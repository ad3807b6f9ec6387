"""The book in a real browser, opened from the disk, the network cut off: pages, links, formulas, pictures, search, knobs, and what screen readers need."""
import importlib
import json
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
import pytest

sync_api = pytest.importorskip('playwright.sync_api')
pytest.importorskip('myst_nb')
CHROMIUM = shutil.which('chromium') or shutil.which('chromium-browser')
if not CHROMIUM: pytest.skip('no chromium', allow_module_level=True)

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT/'_docs'
FLAGS = ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync', '--disable-dev-shm-usage', '--no-proxy-server']
AXE = '4.14.1'

sys.path.insert(0, str(ROOT/'scripts'/'book'))
pages, api, mathml = (importlib.import_module(name) for name in ('pages', 'api', 'mathml'))

def sources():
    "Everything that the book is made of"
    found = [p for folder, pattern in (('nbs', '**/*.ipynb'), ('scripts/book', '**/*'), ('distsmooth', '**/*.py')) for p in (ROOT/folder).glob(pattern)]
    return [p for p in [*found, ROOT/'nbs'/'sidebar.yml', *ROOT.glob('*.md')] if p.is_file() and not {'__pycache__', '.ipynb_checkpoints'} & set(p.parts)]

def fresh():
    index = DOCS/'index.html'
    return index.exists() and index.stat().st_mtime > max(p.stat().st_mtime for p in sources())

@pytest.fixture(scope='module')
def docs():
    "The built book"
    if not fresh():
        made = subprocess.run([sys.executable, 'scripts/book'], cwd=ROOT, capture_output=True, text=True)
        assert not made.returncode, made.stdout + made.stderr
    return DOCS

@pytest.fixture(scope='module')
def browser():
    with sync_api.sync_playwright() as pw:
        browser = pw.chromium.launch(executable_path=CHROMIUM, headless=True, args=FLAGS)
        yield browser
        browser.close()

def opened(browser, width=1280, scheme='light'):
    "A page without a network; `page.said` are errors of its console, `page.asked` what it asked for elsewhere"
    context = browser.new_context(viewport={'width': width, 'height': 900}, color_scheme=scheme)
    page, said, asked = context.new_page(), [], []
    context.set_offline(True)
    page.on('request', lambda r: None if r.url.startswith(('file:', 'data:', 'blob:')) else asked.append(r.url))
    page.on('console', lambda m: said.append(m.text) if m.type in ('error', 'warning') else None)
    page.on('pageerror', lambda e: said.append(str(e)))
    page.on('requestfailed', lambda r: said.append(f'failed: {r.url}'))
    page.said, page.asked = said, asked
    return page

FACTS = """() => {
  const prose = (document.querySelector('article') || document.querySelector('.bd-content')).cloneNode(true);
  prose.querySelectorAll('pre, code, math, script').forEach(e => e.remove());
  return {
    phone: document.documentElement.scrollWidth,
    ids: [...document.querySelectorAll('[id]')].map(e => e.id),
    links: [...document.querySelectorAll('a[href]')].map(a => a.href),
    pictures: [...document.querySelectorAll('article img')].map(i => [i.alt, i.naturalWidth]),
    formulas: document.querySelectorAll('math').length,
    broken: document.querySelectorAll('merror').length,
    next: document.querySelector('a.right-next')?.href,
    sidebar: [...document.querySelectorAll('.bd-sidebar-primary .toctree-l1 > a')].map(a => a.textContent.trim()),
    prose: prose.textContent,
    outputs: [...document.querySelectorAll('.cell_output')].map(e => e.textContent).join('\\n'),
  };
}"""

@pytest.fixture(scope='module')
def site(docs, browser):
    "What each page holds, says and asks for, as a phone shows it"
    page, found = opened(browser, 390), {}
    for path in sorted(docs.rglob('*.html')):
        if {'_static', 'play'} & set(path.relative_to(docs).parts): continue
        page.goto('about:blank')  # or what is left half loaded is said to be the next page's fault
        page.said.clear(), page.asked.clear()
        page.goto(path.as_uri())
        found[path.as_uri()] = page.evaluate(FACTS) | {'said': [*page.said], 'asked': [*page.asked]}
    return found

def where(site, wrong): return {url.removeprefix(DOCS.as_uri() + '/'): w for url, facts in site.items() if (w := wrong(facts))}

def test_every_notebook_and_module_has_a_page(docs):
    notebooks = {p.relative_to(ROOT/'nbs').with_suffix('.html').as_posix() for p in (ROOT/'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts}
    modules = {f'api/{m.name}.html' for m in api.modules(ROOT/'distsmooth')}
    assert len(modules) > 20 and not [p for p in notebooks | modules | {'search.html'} if not (docs/p).exists()]

def test_nothing_is_asked_for_elsewhere(site): assert not where(site, lambda f: f['asked'])
def test_the_console_is_silent(site): assert not where(site, lambda f: f['said'])
def test_every_page_fits_a_phone(site): assert not where(site, lambda f: f['phone'] > 390 and f['phone'])

def test_every_link_and_anchor_is_there(site):
    ids = {url: {*f['ids']} for url, f in site.items()}
    def wrong(facts):
        for link in facts['links']:
            url, _, anchor = link.partition('#')
            if not url.startswith('file:') or url.split('?')[0] in ids and (not anchor or anchor in ids[url.split('?')[0]]): continue
            if url not in ids and Path(url.removeprefix('file://')).is_file(): continue
            yield link
    assert not where(site, lambda f: [*wrong(f)])
    assert sum(len(f['links']) for f in site.values()) > 1000

def test_every_formula_is_drawn(site):
    assert not where(site, lambda f: f['broken'])
    assert not where(site, lambda f: re.findall(r'.{0,30}(?:\$\$|\\\(|\\\[|\\frac|\\tilde|\$[^$\n]{1,60}\\[^$\n]*\$).{0,30}', f['prose']))
    assert sum(f['formulas'] for f in site.values()) > 200

def test_no_page_shows_a_fault(site):
    assert not where(site, lambda f: re.findall(r'Traceback \(most recent call last\)|model not found', f['outputs'] + f['prose']))
    assert not where(site, lambda f: re.findall(r'interactive\(children|HBox\(children|\d+%\|.{0,20}', f['outputs']))
    assert not where(site, lambda f: re.findall(r'.{0,30}\|\s*(?:---|—).{0,30}', f['prose'])), 'a table that is not drawn as one'

def test_every_picture_is_there_and_said_in_words(site):
    assert not where(site, lambda f: [alt or 'no words' for alt, width in f['pictures'] if not width or len(alt) < 3])
    assert sum(len(f['pictures']) for f in site.values()) > 150

def test_the_index_is_whole(site):
    prose, index = site[(DOCS/'index.html').as_uri()]['prose'], site[(DOCS/'index.html').as_uri()]
    assert index['pictures'] and 'one pixel at a time' in prose and 'Start' in prose and 'References' in prose

def test_pages_follow_the_reading_order(site):
    order = ['index'] + [e.path.removesuffix('.ipynb') for _, entries in pages.reading_order(ROOT/'nbs') for e in entries]
    walked, at = [], (DOCS/'index.html').as_uri()
    while at:
        walked.append(at)
        at = site[at]['next']
    walked = [u.removeprefix(DOCS.as_uri() + '/').removesuffix('.html') for u in walked]
    assert [u for u in walked if u != 'playground'][:len(order)] == order

def test_the_sidebar_has_titles(site):
    names = site[(DOCS/'index.html').as_uri()]['sidebar']
    assert [n for n in names if re.fullmatch(r'2\. Smoothing: noise on purpose (◆ )?\d+ min', n)]
    assert not [n for n in names if '¦' in n or '_' in n or n[0].islower() and n != 'distsmooth'], 'a title says what a notebook is about'

def test_the_path_is_marked():
    nb = pages.nbformat.v4.new_notebook(cells=[pages.nbformat.v4.new_markdown_cell('# Toys: a title\n\nAbout 25 minutes.')])
    assert pages.label(pages.entry('course/01_toys.ipynb'), nb) == '1. Toys: a title ¦25 min¦'
    assert pages.label(pages.entry({'href': 'course/01_toys.ipynb', 'path': True}), nb) == '1. Toys: a title ¦◆ 25 min¦'
    assert pages.label(pages.entry({'href': 'engine/x.ipynb', 'path': True, 'minutes': 5}), nb) == 'Toys: a title ¦◆ 5 min¦'

def test_a_notebook_that_is_not_listed_is_named(tmp_path):
    (tmp_path/'sidebar.yml').write_text('website: {sidebar: {contents: [index.ipynb, {section: Course, contents: [course/01_toys.ipynb]}]}}')
    (tmp_path/'new.ipynb').write_text('{}')
    with pytest.raises(SystemExit, match='new.ipynb'): pages.reading_order(tmp_path)

def test_a_picture_without_words_is_named():
    new = pages.nbformat.v4
    shown = [new.new_output('display_data', {'image/png': ''})]
    cells = [new.new_markdown_cell('# Title'), new.new_code_cell('fig', outputs=shown, id='bare'), new.new_code_cell('#| fig-alt: A seven\nfig', outputs=shown),
             new.new_code_cell("def draw(): ax.plot(x); ax.set(title=f'sigma = {s}', xlabel='x')\ndraw()", outputs=shown)]
    nb = new.new_notebook(cells=cells)
    assert pages.describe(nb, {}) == ['bare']
    assert [c.metadata.mystnb.image.alt for c in nb.cells[2:]] == ['A seven', 'Title: curves; sigma = ...; across: x']

def test_a_dead_widget_becomes_its_picture_and_a_sentence():
    new = pages.nbformat.v4
    outputs = [new.new_output('display_data', {pages.VIEW: dict(model_id='knob'), 'text/plain': t}) for t in ('interactive(children=(...', 'rows: 0%| | 0/4 [00:00<?, ?it/s]')] + [new.new_output('stream', text='kept')]
    drawn = [new.new_output('display_data', {'image/png': 'a picture'}), new.new_output('stream', text='while it drew')]
    states = {'knob': dict(state=dict(children=['IPY_MODEL_slider', 'IPY_MODEL_out'])), 'slider': dict(state={}), 'out': dict(state=dict(outputs=drawn))}
    assert pages.settled(outputs, states)[0].data == {'image/png': 'a picture'}
    settled = pages.settled(outputs)
    assert [pages.text_of(o) for o in settled] == [pages.text_of(o) for o in pages.settled(outputs, states)[1:]] == [pages.KNOB, 'kept']
    html = lambda code, *model: pages.shown(settled, code, 'engine/bench.ipynb', *model)[0]['data']['text/html']
    assert 'make lab' in html('live_slider(draw)')
    assert '<iframe' in html('playground()') and 'src="../play/play.html"' in html('playground()')
    colour = html('playground(sm)', pages.model_of(new.new_notebook(cells=[new.new_code_cell("sm = SmoothedModel.from_pretrained('cifar10-16')"), new.new_code_cell('playground(sm)')])))
    assert 'src="../play/cifar10-16/play.html"' in colour and 'photographs' in colour

def test_signatures_are_read_from_the_source(tmp_path):
    (tmp_path/'m.py').write_text('''"What it is"

# File to edit: ../nbs/course/01_m.ipynb.

__all__ = ['f', 'A']

def f(
    x:Tensor, # (B,) values
    y=np.array([1., 2.]), # Two
    *rest, # More
) -> float: # nats
    "One `x`, a*b"

class A(Base):
    "A thing"
    def __init__(self,
        n:int=3, # How many
    ): pass

@patch
def go(self:A, k=1): "Goes"
''')
    f, a = api.read(tmp_path/'m.py', 'p.m').things
    assert f.signature == '(x: Tensor, y=np.array([1.0, 2.0]), *rest) -> float' and f.returns == 'nats'
    assert f.params == [('x', '(B,) values'), ('y', 'Two'), ('*rest', 'More')]
    assert a.signature == '(n: int=3)' and a.params == [('n', 'How many')] and [m.signature for m in a.members] == ['(k=1)']
    assert api.plain('One `x_y`, a*b') == 'One `x_y`, a\\*b'

def test_formulas_are_of_their_letters():
    assert '𝔼' in mathml.mathml(r'\mathbb E', 'inline') and '𝒩' in mathml.mathml(r'\mathcal N', 'inline')
    assert mathml.SPACE in mathml.mathml(r'\log p', 'inline') and mathml.SPACE not in mathml.mathml(r'\log(p)', 'inline')
    assert '<mi>ELU</mi>' in mathml.mathml(r'\mathrm{ELU}', 'inline')

def test_search_finds_from_the_disk(docs, browser):
    page = opened(browser)
    page.goto((docs/'index.html').as_uri())
    page.keyboard.press('Control+k')
    page.keyboard.type('GaussianKernel')
    page.keyboard.press('Enter')
    page.wait_for_url('**/search.html?q=GaussianKernel')
    found = page.locator('#search-results a')
    found.first.wait_for()
    api_page = page.locator('#search-results a', has_text='GaussianKernel').first
    api_page.click()
    page.wait_for_url('**/api/distsmooth.smoothing.html*#distsmooth.smoothing.GaussianKernel')
    assert page.locator('[id="distsmooth.smoothing.GaussianKernel"]').is_visible()
    assert not page.said and not page.asked

def test_light_and_dark(docs, browser):
    "The menu changes the colours, and the next page remembers"
    page = opened(browser)
    page.goto((docs/'index.html').as_uri())
    colours = lambda: page.evaluate("[document.documentElement.dataset.theme, getComputedStyle(document.body).backgroundColor]")
    light = colours()
    page.locator('.theme-switch-button:visible').first.click()
    page.locator('.theme-change-button[data-mode=dark]').first.click()
    dark = colours()
    assert (light[0], dark[0]) == ('light', 'dark') and light[1] != dark[1]
    page.goto((docs/'course'/'02_smoothing.html').as_uri())
    assert colours() == dark

def test_code_of_100_columns_fits(docs, browser):
    "Beside both sidebars at 1280 pixels; on paper and on a phone long lines are broken, not cut"
    page = opened(browser)
    page.goto((docs/'course'/'02_smoothing.html').as_uri())
    broken = "(n) => { const p = document.querySelector('.cell_input pre'); p.textContent = 'x'.repeat(49) + ' ' + 'x'.repeat(n - 50); return [p.clientHeight, p.scrollWidth - p.clientWidth]; }"
    one, over = page.evaluate(broken, 50)
    assert page.evaluate(broken, 100) == [one, 0] and page.evaluate(broken, 160)[0] > one
    page.set_viewport_size({'width': 390, 'height': 844})
    assert page.evaluate(broken, 100)[0] > one and page.evaluate(broken, 100)[1] == 0
    page.emulate_media(media='print')
    assert page.evaluate(broken, 100)[1] == 0
    assert not page.locator('.bd-sidebar-primary').is_visible() and not page.locator('.bd-sidebar-secondary').is_visible()

def test_still_frames_turn(docs, browser):
    page = opened(browser)
    page.goto((docs/'course'/'02_smoothing.html').as_uri())
    box = page.locator('.frame-slider').first
    shown = lambda: box.locator('img:visible').get_attribute('src')
    before = shown()
    box.locator('input[type=range]').focus()
    page.keyboard.press('ArrowRight')
    assert shown() != before and not page.said

def test_the_playground_draws_where_the_knob_stands(docs, browser):
    "In the notebook's page: a key gives other digits; it takes the page's colours"
    page = opened(browser)
    page.goto((docs/'course'/'00_start.html').as_uri())
    page.locator('iframe.playground').scroll_into_view_if_needed()
    play = page.frame_locator('iframe.playground')
    play.locator('.ds[data-state=ready]').wait_for(timeout=60_000)
    digits, paper = (lambda: play.locator('.reverse canvas').evaluate('c => c.toDataURL()')), (lambda: play.locator('.ds').evaluate('e => getComputedStyle(e).colorScheme'))
    before, light = digits(), paper()
    play.locator('input[type=range]').first.press('ArrowRight')
    sync_api.expect(play.locator('.status').first).to_contain_text('sigma 0.55, drawn', timeout=60_000)
    page.evaluate("document.documentElement.dataset.theme = 'dark'")
    sync_api.expect(play.locator('html')).to_have_attribute('theme', 'dark')
    assert digits() != before and (light, paper()) == ('light', 'dark') and not page.said and not page.asked

def test_the_book_leaves_tracked_files_alone(docs):
    ignored = subprocess.run(['git', 'check-ignore', '_docs', '_book'], cwd=ROOT, capture_output=True, text=True)
    if ignored.returncode > 1: pytest.skip('not a git checkout')
    assert ignored.stdout.split() == ['_docs', '_book']

@pytest.fixture(scope='module')
def axe():
    "axe-core, from npm the first time"
    path = ROOT/'.cache'/f'axe-core-{AXE}.js'
    if not path.exists():
        if not shutil.which('npm'): pytest.skip('no npm to fetch axe-core with')
        path.parent.mkdir(exist_ok=True)
        got = subprocess.run(['npm', 'pack', f'axe-core@{AXE}'], cwd=path.parent, capture_output=True, text=True, timeout=60)
        if got.returncode: pytest.skip(f'axe-core cannot be had: {got.stderr[-200:]}')
        packed = path.parent/got.stdout.split()[-1]
        with tarfile.open(packed) as t: path.write_bytes(t.extractfile('package/axe.min.js').read())
        packed.unlink()
    return path.read_text(encoding='utf8')

@pytest.mark.parametrize('name', ['index', 'course/02_smoothing', 'play/play', 'play/cifar10-16/play', 'api/distsmooth.pipeline', 'search'])
def test_nothing_serious_stands_in_the_way(docs, browser, axe, name):
    "axe-core: contrast, names, order, focus, at two widths; of the dark page its contrasts"
    page, serious = opened(browser), {}
    page.goto((docs/f'{name}.html').as_uri())
    page.evaluate("() => document.querySelectorAll('.cell').forEach((cell, i) => { if (i > 7) cell.remove(); })")  # more of the same
    page.evaluate(axe)
    paper = lambda: page.evaluate("[...document.querySelectorAll('body, .ds')].map(e => getComputedStyle(e).backgroundColor)")
    papers = []
    for scheme in ('light', 'dark'):
        page.emulate_media(color_scheme=scheme)
        for width in (1280, 390):
            page.set_viewport_size({'width': width, 'height': 900})
            page.wait_for_timeout(400)  # colours change slowly
            found = page.evaluate("async only => (await axe.run(document, {resultTypes: ['violations'], ...only})).violations", {} if scheme == 'light' else {'runOnly': ['color-contrast']})
            serious |= {f'{v["id"]} {width} {scheme}': [n['html'][:120] for n in v['nodes'][:3]] for v in found if v['impact'] in ('serious', 'critical')}
        papers.append(paper())
    page.context.close()
    assert not serious, json.dumps(serious, indent=1)
    assert all(light != dark for light, dark in zip(*papers)), 'both were looked at'
