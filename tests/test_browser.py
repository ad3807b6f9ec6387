"""A real browser: a slider's position and its picture go together, in JupyterLab and in a plain page; nothing outside this machine is asked for."""
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path
import pytest

sync_api = pytest.importorskip('playwright.sync_api')
CHROMIUM = os.environ.get('CHROMIUM') or shutil.which('chromium') or shutil.which('chromium-browser')
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="needs Debian's chromium (apt-get install chromium) or CHROMIUM=/path/to/it")
NOTEBOOK = Path(__file__).resolve().parent.parent/'nbs'/'engine'/'plots.ipynb'
FLAGS = ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
         '--disable-component-update', '--disable-sync', '--disable-dev-shm-usage', '--no-proxy-server']
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # `urlopen` keeps the proxies of its first call

def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]

@contextmanager
def jupyterlab(folder, tmp, timeout=120):
    "JupyterLab over `folder`, with settings of its own; yields its address"
    port = free_port()
    env = {**os.environ, 'MPLBACKEND': 'module://matplotlib_inline.backend_inline',
           **{name: str(tmp/name.lower()) for name in ('JUPYTER_CONFIG_DIR', 'JUPYTER_DATA_DIR', 'JUPYTER_RUNTIME_DIR', 'IPYTHONDIR', 'JUPYTERLAB_SETTINGS_DIR', 'JUPYTERLAB_WORKSPACES_DIR')}}
    news = tmp/'jupyterlab_settings_dir'/'@jupyterlab'/'apputils-extension'/'notification.jupyterlab-settings'
    news.parent.mkdir(parents=True)
    news.write_text('{"fetchNews": "false", "checkForUpdates": false}')
    command = [sys.executable, '-m', 'jupyterlab', '--no-browser', '--allow-root', '--ip=127.0.0.1', f'--port={port}', '--ServerApp.port_retries=0',
               f'--ServerApp.root_dir={folder}', '--IdentityProvider.token=', '--expose-app-in-browser', '--LabApp.extension_manager=readonly']
    with open(tmp/'lab.log', 'w') as log:
        process, end = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=env), time.monotonic() + timeout
        try:
            while True:
                if process.poll() is not None or time.monotonic() > end: raise RuntimeError((tmp/'lab.log').read_text())
                try: DIRECT.open(f'http://127.0.0.1:{port}/api/status', timeout=5); break
                except OSError: time.sleep(.2)
            yield f'http://127.0.0.1:{port}'
        finally:
            process.terminate()
            try: process.wait(10)
            except subprocess.TimeoutExpired: process.kill(); process.wait()

def as_far_as(cells, text):
    "The cells before the first one that has `text` in it, and that one"
    last = next(i for i, c in enumerate(cells) if text in ''.join(c['source']))
    return cells[:last + 1]

MORE = [  # frames; the playground of the model in the box, and of one that stays in the kernel
    "from distsmooth.plots import draw_mixture, frame_slider\nframe_slider(lambda mean: draw_mixture([1], [mean], [.1]), [-.5, .5], 'mean')",
    "from distsmooth import playground\nplayground()",
    "from distsmooth.conditional import StackedPixelCNNpp\nfrom distsmooth.pipeline import SmoothedModel\nfrom distsmooth.pixelcnn import PixelCNNpp\n"
    "how = dict(size=8, n_filters=4, n_resnet=1, n_mix=2, dropout=0., sigma_range=(.2, .8))\n"
    "playground(SmoothedModel(PixelCNNpp(**how), StackedPixelCNNpp(**how)).eval())"]

@pytest.fixture(scope='module')
def page(tmp_path_factory):
    "The notebook as far as its first live slider, and `MORE`, opened and run; `page.outside` lists what was asked for elsewhere"
    tmp = tmp_path_factory.mktemp('browser')
    (tmp/'nbs').mkdir()
    nb = json.loads(NOTEBOOK.read_text())
    nb['cells'] = as_far_as(nb['cells'], 'live_slider(lambda')
    nb['cells'] += [dict(cell_type='code', id=f'more{i}', metadata={}, source=source, outputs=[], execution_count=None) for i, source in enumerate(MORE)]
    (tmp/'nbs'/NOTEBOOK.name).write_text(json.dumps(nb))
    with jupyterlab(tmp/'nbs', tmp) as address, sync_api.sync_playwright() as pw:
        context = pw.chromium.launch_persistent_context(str(tmp/'chrome'), executable_path=CHROMIUM, headless=True, args=FLAGS, viewport={'width': 1100, 'height': 1000})
        page, outside = context.new_page(), []
        def guard(route):
            if route.request.url.startswith((address, 'data:', 'blob:')): return route.continue_()
            outside.append(route.request.url)
            route.abort()
        context.route('**/*', guard)
        page.outside = outside
        page.goto(f'{address}/doc/tree/{NOTEBOOK.name}?reset', wait_until='domcontentloaded')
        page.locator('.jp-Notebook').wait_for(timeout=120_000)
        kernel = "window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel?.status"
        page.wait_for_function(f"() => {kernel} === 'idle'", timeout=120_000)
        page.evaluate("() => window.jupyterapp.commands.execute('notebook:run-all-cells')")
        page.wait_for_function(f"() => {kernel} === 'idle'", timeout=240_000)
        yield page
        context.close()

def scroll_to(page, selector):
    "JupyterLab draws only the cells in view: walk down until the first match is there"
    for _ in range(80):
        if page.locator(selector).count(): break
        page.locator('.jp-WindowedPanel-outer').first.evaluate('e => e.scrollBy(0, 500)')
        page.wait_for_timeout(150)
    found = page.locator(selector).first
    found.scroll_into_view_if_needed(timeout=60_000)
    return found

def test_live_slider(page):
    "A key reaches the kernel: another value, its picture; back at the first value, the first picture"
    handle = scroll_to(page, '.noUi-handle[role=slider]')
    box = page.locator('.widget-interact').first
    picture, readout = box.locator('img').first, box.locator('.widget-readout')
    picture.wait_for(timeout=60_000)
    sync_api.expect(readout).to_have_text('0.3')
    first, seen = picture.get_attribute('src'), []
    for key, value in (('ArrowRight', '0.5'), ('ArrowRight', '0.7'), ('End', '1'), ('Home', '0')):
        before = picture.get_attribute('src')
        handle.focus()
        page.keyboard.press(key)
        sync_api.expect(readout).to_have_text(value, timeout=60_000)
        sync_api.expect(picture).not_to_have_attribute('src', before, timeout=60_000)
        seen.append(picture.get_attribute('src'))
    assert len({first, *seen}) == 5, 'every level of noise has a picture of its own'
    for _ in range(3): page.keyboard.press('ArrowRight')
    sync_api.expect(readout).to_have_text('0.3', timeout=60_000)
    sync_api.expect(picture).to_have_attribute('src', first, timeout=60_000)

def saved_slider():
    "The first frame slider that the notebook holds"
    outputs = [''.join(o.get('data', {}).get('text/html', '')) for c in json.loads(NOTEBOOK.read_text())['cells'] for o in c.get('outputs', [])]
    return next(text for text in outputs if 'frame-slider' in text)

def test_frame_slider_in_a_page_without_a_kernel(page):
    "What the notebook saved, in a plain page: each position shows its own frame and no other, and says its value to all who ask"
    plain = page.context.new_page()
    plain.set_content(saved_slider())
    box, knob = plain.locator('.frame-slider'), plain.locator('input[type=range]')
    names = json.loads(box.get_attribute('data-names'))
    assert names == ['0', '0.2', '0.5', '1']
    sources = box.locator('img').evaluate_all('images => images.map(i => i.src)')
    assert len(set(sources)) == len(names)
    def shows(i):
        sync_api.expect(box.locator('img:visible')).to_have_attribute('alt', f'sigma = {names[i]}')
        assert box.locator('img:visible').count() == 1 and box.locator('img:visible').get_attribute('src') == sources[i]
        assert box.locator('output').inner_text() == names[i]
    shows(0)
    knob.focus()
    for i in range(1, len(names)):
        plain.keyboard.press('ArrowRight')
        shows(i)
        assert knob.get_attribute('aria-valuetext') == names[i]
    plain.keyboard.press('Home')
    shows(0)
    plain.close()

def test_frame_slider_takes_the_arrow_keys(page):
    "JupyterLab would go to the next cell with them"
    box = scroll_to(page, '.frame-slider:has-text("mean")')
    for key, value in (('ArrowRight', '0.5'), ('ArrowLeft', '-0.5')):
        box.locator('input').press(key)
        sync_api.expect(box.locator('img:visible')).to_have_attribute('alt', f'mean = {value}')

@pytest.mark.parametrize('i, where', [*enumerate(('in this browser', 'by the Python kernel'))])
def test_the_playground(page, i, where):
    "The model in the box is drawn by the browser, one that cannot be exported by the kernel; arrow keys turn the knob, they do not leave the cell"
    pytest.importorskip('anywidget')
    scroll_to(page, '.ds')
    box = page.locator('.ds').nth(i)
    knob, status, strip, seen = box.locator('input[type=range]').first, box.locator('.status').first, box.locator('.reverse canvas'), []
    for key, value in (('', '0.50'), ('ArrowRight', '0.55'), ('ArrowLeft', '0.50'), ('End', knob.get_attribute('max'))):
        if key: knob.press(key)
        sync_api.expect(status).to_contain_text(f'sigma {float(value):.2f}, drawn {where}', timeout=120_000)
        seen.append(strip.evaluate('c => c.toDataURL()'))
        if key == 'ArrowRight': sync_api.expect(box.locator('.complete .status')).to_contain_text('completed at sigma 0.55', timeout=120_000)  # by a sampler of its own
    assert seen[0] == seen[2] and len({*seen}) == 3
    strip.press('ArrowDown')
    sync_api.expect(box.locator('.mixture .what')).to_contain_text('two-step: drawn', timeout=60_000)

def test_nothing_outside(page): assert not page.outside
