"""A real browser: the live slider moves its picture in JupyterLab, the frame slider in a plain page, and nothing outside this machine is asked for."""
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
         '--disable-component-update', '--disable-sync', '--disable-dev-shm-usage']

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
                try: urllib.request.urlopen(f'http://127.0.0.1:{port}/api/status', timeout=5); break
                except OSError: time.sleep(.2)
            yield f'http://127.0.0.1:{port}'
        finally:
            process.terminate()
            try: process.wait(10)
            except subprocess.TimeoutExpired: process.kill(); process.wait()

@pytest.fixture(scope='module')
def page(tmp_path_factory):
    "The notebook, opened and run; `page.outside` lists what was asked for elsewhere"
    tmp = tmp_path_factory.mktemp('browser')
    (tmp/'nbs').mkdir()
    shutil.copy(NOTEBOOK, tmp/'nbs')
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
    "The arrow key reaches the kernel: a new value, a new picture"
    handle = scroll_to(page, '.noUi-handle[role=slider]')
    box = page.locator('.widget-interact').first
    picture = box.locator('img').first
    picture.wait_for(timeout=60_000)
    before, value = picture.get_attribute('src'), box.locator('.widget-readout').inner_text()
    handle.focus()
    page.keyboard.press('ArrowRight')
    sync_api.expect(box.locator('.widget-readout')).not_to_have_text(value, timeout=60_000)
    sync_api.expect(box.locator('img').first).not_to_have_attribute('src', before, timeout=60_000)

def test_frame_slider_in_a_page_without_a_kernel(page):
    "What the notebook saved, in a plain page: the arrow key shows another frame and another label"
    cells = json.loads(NOTEBOOK.read_text())['cells']
    saved = next(''.join(o['data']['text/html']) for c in cells for o in c.get('outputs', []) if 'frame-slider' in ''.join(o.get('data', {}).get('text/html', '')))
    plain = page.context.new_page()
    plain.set_content(saved)
    box = plain.locator('.frame-slider')
    first = box.locator('img:visible').get_attribute('alt')
    plain.locator('input[type=range]').focus()
    plain.keyboard.press('ArrowRight')
    sync_api.expect(box.locator('img:visible')).not_to_have_attribute('alt', first)
    assert box.locator('img:visible').count() == 1
    assert box.locator('img:visible').get_attribute('alt').endswith(' = ' + box.locator('output').inner_text())
    plain.close()

def test_nothing_outside(page): assert not page.outside
