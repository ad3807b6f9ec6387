"""The page in a real browser: the digits of PyTorch from the same uniforms, knobs by mouse and keyboard, and nothing from outside."""
import asyncio
import base64
import functools
import http.server
import json
import os
import shutil
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
import numpy as np
import pytest
import torch
from distsmooth.engine.page import (BUNDLED, COMPILER, KernelSampler, as_on_page, check_exportable, compile_kernels, export_weights, kernels,
                                    pack_weights, playground, write_page)
from distsmooth.logistic import LogisticMixture
from distsmooth.conditional import StackedPixelCNNpp
from distsmooth.pipeline import SmoothedModel
from distsmooth.pixelcnn import PixelCNNpp
from distsmooth.smoothing import GaussianKernel
from test_browser import CHROMIUM, FLAGS

sync_api = pytest.importorskip('playwright.sync_api')
in_browser = pytest.mark.skipif(not CHROMIUM, reason="needs Debian's chromium (apt-get install chromium) or CHROMIUM=/path/to/it")
sync_api.expect.set_options(timeout=120_000)
SIGMAS = .1, .4, 1.
TOLD = {'labelled': dict(n_classes=3), 'labelled, one level': dict(n_classes=3, sigma_range=None)}

def random_pair(channels=3, size=(8, 12), head='continuous', n_resnet=2, **more):
    "A small model with sizes that the bundled one does not have, far from its first, tame weights"
    make = functools.partial(PixelCNNpp, channels, size, n_filters=12, n_mix=3, dropout=0., **dict(sigma_range=(.2, .9)) | more)
    torch.manual_seed(0)
    sm = SmoothedModel(make(head=head, n_resnet=n_resnet), make(head='discretized', n_resnet=1, context_channels=channels), GaussianKernel(.5))
    with torch.no_grad():
        for name, p in sm.named_parameters():
            if p.ndim == 1: p.uniform_(-.3, .3)
    return sm.eval()

def stacked_pair():
    "A model that the page cannot draw from"
    torch.manual_seed(0)
    how = dict(size=8, n_filters=4, n_resnet=1, n_mix=2, dropout=0., sigma_range=(.2, .8))
    return SmoothedModel(PixelCNNpp(**how), StackedPixelCNNpp(**how)).eval()

@pytest.fixture(scope='module')
def sm(): return SmoothedModel.from_pretrained('digits')

@pytest.fixture(scope='module')
def site(sm, tmp_path_factory):
    "A folder with play.html and weights, served on this machine alone; yields its address"
    folder = tmp_path_factory.mktemp('site')
    write_page(folder, sm)
    (folder/'float32.safetensors').write_bytes(export_weights(sm, 'float32'))
    for name, pair in {'small.bin': random_pair(), 'grey.bin': random_pair(1), **{f'{k}.bin': random_pair(**how) for k, how in TOLD.items()}}.items():
        (folder/name).write_bytes(pack_weights(export_weights(pair, 'float32')))
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_): pass
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(Quiet, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield folder, f'http://127.0.0.1:{server.server_address[1]}'
    server.shutdown()

@pytest.fixture(scope='module')
def browser():
    with sync_api.sync_playwright() as pw:
        yield pw.chromium.launch(executable_path=CHROMIUM, headless=True, args=FLAGS)

@pytest.fixture(scope='module')
def open_page(browser):
    "Opens an address with nothing but it to be reached; `page.troubles` lists errors and wishes for anything else"
    def opened(address, **how):
        context = browser.new_context(**how)
        page, own = context.new_page(), address.rsplit('/', 1)[0]
        page.troubles = []
        page.on('pageerror', lambda e: page.troubles.append(str(e)))
        page.on('console', lambda m: page.troubles.append(m.text) if m.type == 'error' else None)
        def guard(route):
            if route.request.url.startswith((own, 'data:', 'blob:')): return route.continue_()
            page.troubles.append(route.request.url)
            route.abort()
        context.route('**/*', guard)
        page.set_default_timeout(120_000)
        page.goto(address)
        return page
    return opened

@pytest.fixture(scope='module')
def served(open_page, site):
    "The page by way of a server, its own drawing stopped, to call `distsmooth` in"
    page = open_page(f'{site[1]}/play.html')
    page.locator('#playground canvas').first.wait_for()  # it looks for its place when its module is read
    page.evaluate("document.getElementById('playground').remove()")
    yield page
    assert not page.troubles

def text(x): return base64.b64encode(np.asarray(x, np.float32).tobytes()).decode()

def sample(page, source, uniforms, shape, options='{}', **settings):
    "What `sampler.sample` gives in the page, as a tensor (n, *shape)"
    arrays = {k: [text(v) for v in vs] for k, vs in dict(uniforms=uniforms, known=settings.pop('known', [])).items()}
    code = """async ([source, options, settings, arrays]) => {
        const samplers = globalThis.samplers ??= {}, numbers = t => new Float32Array(Uint8Array.from(atob(t), c => c.charCodeAt(0)).buffer);
        const s = samplers[source + JSON.stringify(options)] ??= await distsmooth.load(source || undefined, options);
        const known = arrays.known.length ? arrays.known.map(numbers) : undefined;
        const x = await s.sample({...settings, uniforms: arrays.uniforms.map(numbers), known});
        if (!(x instanceof Float32Array)) throw new Error('not a Float32Array');
        let letters = '';
        for (const byte of new Uint8Array(x.buffer)) letters += String.fromCharCode(byte);
        return [btoa(letters), s.about.kernel];
    }"""
    data, page.kernel = page.evaluate(code, [source, json.loads(options), settings, arrays])
    return torch.from_numpy(np.frombuffer(base64.b64decode(data), np.float32).copy()).reshape(-1, *shape)

def on_edge(dist, x, u, transform, b, i, j):
    "Whether the last bits of float32 decide what pixel (i, j) of image `b` becomes"
    mix = dist.mixture(x)
    margin = (u[b, 0, i, j] - mix.logits.exp().cumsum(1)[b, :-1, i, j]).abs().min()
    if transform == 'choice' and margin < 1e-5: return True
    if dist.model.head != 'discretized': return False
    exact = LogisticMixture(dist.model(x, **dist.conditions), dist.model.channels).from_uniforms(u, transform)[b, :, i, j]
    return bool(((exact + 1)*127.5 % 1 - .5).abs().min() < 1e-3)

def same_but_for_edges(mine, x, dist, u, transform):
    "The images that are not the same, after a choice that lay on its edge; an error if there is another reason"
    differ = (mine - x).abs().amax(1) > 1e-3
    others = differ.flatten(1).any(1).nonzero().flatten().tolist()
    for b in others:
        i, j = divmod(int(differ[b].flatten().long().argmax()), x.shape[3])
        assert on_edge(dist, x, u, transform, b, i, j), (b, i, j, mine[b, :, i, j], x[b, :, i, j])
    return others

@in_browser
@pytest.mark.parametrize('transform', ['choice', 'icdf'])
def test_the_digits_of_pytorch(served, sm, transform):
    "float32 weights, three noise levels, smoothed and two-step: 1e-3 for every pixel, except after a choice on its edge"
    u = sm.uniforms(6, torch.Generator().manual_seed(5))
    sigma = torch.tensor(SIGMAS).repeat_interleave(2)
    x_noisy = sm.sample(uniforms=u, denoise=None, sigma=sigma, transform=transform)
    x = sm.denoise(x_noisy, 'two_step', u[1], sigma, transform=transform)
    edges = 0
    for k, s in enumerate(SIGMAS):
        own = slice(2*k, 2*k + 2)
        part, how = [v[own] for v in u], dict(sigma=s, transform=transform)
        noisy = sample(served, 'float32.safetensors', part, (1, 28, 28), denoise=None, **how)
        lost = same_but_for_edges(noisy, x_noisy[own], sm.smooth.dist(sigma=s), part[0], transform)
        clean = sample(served, 'float32.safetensors', part, (1, 28, 28), denoise='two_step', **how)
        keep = [b for b in range(2) if b not in lost]
        dist = sm.reverse.dist(sigma=s, context=x_noisy[own][keep])
        lost += same_but_for_edges(clean[keep], x[own][keep], dist, part[1][keep], transform)
        edges += len(lost)
    print(f'{transform}: {edges} of 12 images end on an edge')
    assert served.kernel in ('relaxed', 'simd') and edges <= 2

@in_browser
def test_the_stored_weights_are_the_pages_weights(served, sm):
    "What play.html holds draws what Python draws with the weights as they were stored: half precision, and 8 bits for raw"
    stored, u = as_on_page(sm, BUNDLED), sm.uniforms(1, torch.Generator().manual_seed(1))
    mine = sample(served, '', u, (1, 28, 28), sigma=.5)
    noisy = stored.sample(uniforms=u, denoise=None)
    assert not same_but_for_edges(mine, stored.denoise(noisy, 'two_step', u[1]), stored.reverse.dist(sigma=.5, context=noisy), u[1], 'choice')
    raw = sample(served, '', u[:1], (1, 28, 28), denoise=None, part='raw', temperature=.8)
    expected = stored.raw.sample(uniforms=u[0], temperature=.8)
    torch.testing.assert_close(raw, expected, atol=1e-3, rtol=0)

@pytest.fixture(scope='module')
def small():
    "Uniforms of the random model, known pixels, a mask; settings, and what PyTorch draws with them"
    small = random_pair()
    u, known = small.uniforms(2, torch.Generator().manual_seed(2)), torch.linspace(-1, 1, 2*3*8*12).reshape(2, 3, 8, 12)
    mask = torch.zeros(8, 12, dtype=torch.bool)
    mask[:3], mask[3, :5] = True, True
    cases = [dict(transform='choice'), dict(transform='icdf', temperature=.7), dict(known=known, mask=mask)]
    return u, [(how, small.sample(uniforms=u, sigma=.3, **how)) for how in cases]

@in_browser
@pytest.mark.parametrize('options', ['{}', '{"plain": true}', '{"worker": false}'], ids=['worker', 'no SIMD', 'no worker'])
def test_other_sizes_colours_and_a_known_half(served, small, options):
    "Nothing knows the sizes of the bundled model; the known pixels stay, temperature and transform count"
    u, cases = small
    for how, x in cases:
        given = dict(how, known=[how['known']]*2, mask=how['mask'].flatten().int().tolist()) if 'mask' in how else how
        torch.testing.assert_close(sample(served, 'small.bin', u, (3, 8, 12), options, sigma=.3, **given), x, atol=1e-3, rtol=0)
    assert served.kernel == 'plain' if 'plain' in options else served.kernel in ('relaxed', 'simd')

@in_browser
@pytest.mark.parametrize('name', TOLD)
def test_a_class_is_drawn(served, name):
    "As in Python; the first one if none is asked for, and none that is not there"
    small = random_pair(**TOLD[name])
    u = small.uniforms(2, torch.Generator().manual_seed(2))
    level = .3 if small.smooth.sigma_range else .5
    drawn = [small.sample(uniforms=u, label=k, sigma=level) for k in range(3)]
    assert (drawn[0] - drawn[1]).abs().max() > .1 < (drawn[1] - drawn[2]).abs().max()
    for k, how in ((0, {}), (1, dict(label=1)), (2, dict(label=2))):
        torch.testing.assert_close(sample(served, f'{name}.bin', u, (3, 8, 12), sigma=level, **how), drawn[k], atol=1e-3, rtol=0)
    for wrong in (3, -1, .5, 'ship'):
        with pytest.raises(sync_api.Error, match=rf'label must be a whole number in \[0, 2\], got {wrong}'): sample(served, f'{name}.bin', u, (3, 8, 12), sigma=level, label=wrong)

@in_browser
def test_a_browser_without_simd_takes_plain_javascript(open_page, site, small):
    page = open_page(f'{site[1]}/play.html')
    page.evaluate("document.getElementById('playground').remove(); WebAssembly.instantiate = async () => { throw new WebAssembly.CompileError('no'); }; 0")
    u, ((how, x), *_) = small
    torch.testing.assert_close(sample(page, 'small.bin', u, (3, 8, 12), '{"worker": false}', sigma=.3, **how), x, atol=1e-3, rtol=0)
    assert page.kernel == 'plain'

@in_browser
def test_uniforms_are_those_of_a_generator(served):
    mine = served.evaluate("async () => (await distsmooth.load('small.bin')).uniforms(2, 4294967295).map(a => [...a.slice(0, 5), a.length])")
    for found, u in zip(mine, random_pair().uniforms(2, torch.Generator().manual_seed(4294967295))):
        assert found == [*u.flatten()[:5].tolist(), u.numel()]

@in_browser
def test_a_new_call_cancels_the_old_one(served):
    "Rows come one after the other; the old promise fails with an AbortError; wrong wishes say what would be right"
    result = served.evaluate("""async () => {
        const s = await distsmooth.load('small.bin'), uniforms = s.uniforms(2, 0), rows = [];
        const fate = p => p.then(x => x.length, e => `${e.name}: ${e.message}`);
        const old = fate(s.sample({uniforms: s.uniforms(64, 0)}));
        const done = await fate(s.sample({uniforms, onRow: (row, values, part) => rows.push(`${part} ${row} ${values.length}`)}));
        const mixture = await s.mixture({part: 'reverse', image: 1, row: 7, column: 11});
        const wrong = [{uniforms, sigma: 2}, {uniforms: [uniforms[0].slice(1)]}, {uniforms, transform: 'x'}, {uniforms, denoise: 'single_step'}, {uniforms, temperature: 0},
                       {uniforms, mask: new Uint8Array(96)}, {uniforms, known: [uniforms[0]], mask: new Uint8Array(5)}];
        const stopped = fate(s.sample({uniforms: s.uniforms(64, 0)}));
        s.cancel();
        return {old: await old, done, rows, mixture, stopped: await stopped, wrong: await Promise.all(wrong.map(w => fate(s.sample(w))))};
    }""")
    assert result['old'].startswith('AbortError') and result['stopped'].startswith('AbortError') and result['done'] == 2*3*8*12
    assert result['rows'] == [f'{part} {i} {2*3*12}' for part in ('smooth', 'reverse') for i in range(8)]
    assert all(w.startswith('RangeError') and ('got' in w or 'missing' in w) for w in result['wrong']), result['wrong']
    assert abs(sum(result['mixture']['weights']) - 1) < 1e-6 and len(result['mixture']['values']) == 3

@in_browser
def test_a_mixture_is_what_the_pixel_was_drawn_from(served):
    sm, places = random_pair(1), [dict(part='smooth', image=1, row=3, column=2), dict(part='reverse', image=0, row=7, column=11)]
    found = served.evaluate("""async places => {
        const s = await distsmooth.load('grey.bin');
        await s.sample({sigma: .3, uniforms: s.uniforms(2, 0)});
        return Promise.all(places.map(s.mixture));
    }""", places)
    kernel = KernelSampler(sm)
    for _ in kernel.draw(dict(sigma=.3), sm.uniforms(2, torch.Generator().manual_seed(0))): pass
    for mine, python in zip(found, [kernel.mixture(**where) for where in places]):
        for name in ('weights', 'means', 'scales', 'values', 'uniforms'): np.testing.assert_allclose(mine[name], python[name], atol=2e-3, rtol=1e-3)
        assert mine['discretized'] == python['discretized']

# the playground, from a disk

def pixels(page, figure): return page.locator(f'{figure} canvas').evaluate('c => c.toDataURL()')
def is_ready(page): page.locator('.ds[data-state=ready]').wait_for()
def is_completed(page): sync_api.expect(page.locator('.complete .status')).to_contain_text('completed')

@pytest.fixture(scope='module')
def play(open_page, site):
    page = open_page(f'file://{site[0]}/play.html', viewport={'width': 1280, 'height': 1000})
    is_ready(page), is_completed(page)
    yield page
    assert not page.troubles

@in_browser
def test_a_picture_without_a_script(open_page, site):
    page = open_page(f'file://{site[0]}/play.html', java_script_enabled=False)
    assert page.locator('#still').evaluate('e => e.naturalWidth') > 200

@in_browser
def test_the_still_picture_is_the_first_drawing(play):
    "What Python drew is what is drawn a moment later, but for a few pixels that half precision turns over"
    for part in ('smooth', 'reverse'):
        still, drawn = play.evaluate("""part => {
            const still = atob(JSON.parse(document.getElementById('state').textContent).still[part]), canvas = document.querySelector(`.${part} canvas`);
            const line = (k, i) => [...canvas.getContext('2d').getImageData(30*k, i, 28, 1).data].filter((_, q) => q % 4 === 0);
            return [[...still].map(c => c.charCodeAt(0)), [...Array(8*28).keys()].flatMap(r => line(r/28 | 0, r % 28))];
        }""", part)
        assert len(still) == 8*784 and np.mean(np.equal(still, drawn)) > .95, 'another picture has less than half in common'
        assert len({*drawn}) > 50

@in_browser
def test_knobs_by_keyboard_and_by_mouse(play):
    "Another value, other pixels; back at the first value, the first pixels"
    knob, out = play.locator('input[type=range]').first, play.locator('output').first
    first = pixels(play, '.reverse'), pixels(play, '.smooth')
    knob.focus()
    play.keyboard.press('ArrowRight')
    sync_api.expect(out).to_have_text('0.55')
    is_ready(play)
    assert knob.get_attribute('aria-valuetext') == 'sigma 0.55' and knob.evaluate('e => e.value') == '0.55'
    assert pixels(play, '.reverse') != first[0] and pixels(play, '.smooth') != first[1]
    play.keyboard.press('ArrowLeft')
    sync_api.expect(out).to_have_text('0.50')
    is_ready(play)
    assert (pixels(play, '.reverse'), pixels(play, '.smooth')) == first
    box = knob.bounding_box()
    play.mouse.click(box['x'] + box['width'] - 3, box['y'] + box['height']/2)
    sync_api.expect(out).to_have_text('1.00')
    is_ready(play)
    assert pixels(play, '.reverse') != first[0]
    for label in ('morph', 'reshuffle'):
        before = pixels(play, '.smooth')
        play.locator('label', has_text=label).click()
        is_ready(play)
        assert pixels(play, '.smooth') != before
    before = pixels(play, '.smooth'), pixels(play, '.clean')
    play.get_by_role('button', name='other digits').click()
    is_ready(play)
    assert pixels(play, '.smooth') != before[0] and pixels(play, '.clean') != before[1]

@in_browser
def test_a_pixel_and_its_mixture(play):
    "By pointer and by arrow keys; said in words"
    words, canvas = play.locator('.mixture .what'), play.locator('.smooth canvas')
    box = canvas.bounding_box()
    play.mouse.move(box['x'] + box['width']*.55, box['y'] + box['height']*.5)
    sync_api.expect(words).to_contain_text('Digit 5, row 15, column')
    assert play.locator('.mixture svg path').count() > 5
    play.locator('.reverse canvas').focus()
    play.keyboard.press('ArrowRight')
    sync_api.expect(words).to_contain_text('Digit 1, row 15, column 16, two-step')
    for _ in range(20): play.keyboard.press('ArrowRight')
    sync_api.expect(words).to_contain_text('Digit 2, row 15, column 8, two-step')

@in_browser
def test_what_is_drawn_by_hand_is_completed(play):
    "By pointer and by keys, both ways; the upper half of each result is what was drawn"
    is_completed(play)
    before = pixels(play, '.detour'), pixels(play, '.direct')
    play.get_by_role('button', name='clear').click()
    box = play.locator('.pad canvas').bounding_box()
    at = lambda x, y: (box['x'] + box['width']*x, box['y'] + box['height']*y)
    play.mouse.move(*at(.3, .2)), play.mouse.down()
    for x in (.4, .5, .6, .7): play.mouse.move(*at(x, .2))
    play.mouse.move(*at(.6, .45)), play.mouse.up()
    play.wait_for_function("before => document.querySelector('.direct canvas').toDataURL() !== before", arg=before[1])
    play.wait_for_timeout(400), is_completed(play)
    after = pixels(play, '.detour'), pixels(play, '.direct')
    assert after[0] != before[0] and after[1] != before[1]
    half = """s => [...document.querySelector(s + ' canvas').getContext('2d').getImageData(0, 0, 28, 14).data]"""
    drawn = play.evaluate(half, '.pad')
    assert max(drawn[::4]) > 200 and play.evaluate(half, '.detour') == drawn and play.evaluate(half, '.direct') == drawn
    play.locator('.pad canvas').focus()
    play.keyboard.press('ArrowUp'), play.keyboard.press(' ')
    assert play.evaluate(half, '.pad') != drawn

@in_browser
def test_a_model_of_one_network_at_one_noise_level(open_page, tmp_path):
    "What it cannot do is not shown"
    write_page(tmp_path, SmoothedModel(PixelCNNpp(1, 8, n_filters=4, n_resnet=1, n_mix=2)).eval())
    page = open_page(f'file://{tmp_path}/play.html')
    is_ready(page)
    assert page.locator('input[type=range]').first.is_disabled() and page.locator('.smooth canvas').is_visible()
    for name in ('.intro', '.clean', '.reverse', '.lesson', '.complete', '.classes'): assert not page.locator(name).is_visible(), name
    assert not page.troubles

@in_browser
def test_a_ship(open_page, tmp_path):
    "Colour, by class: what is not for it is not shown, and nothing is called a digit"
    write_page(tmp_path, SmoothedModel.from_pretrained('cifar10-16'), label=8)
    page = open_page(f'file://{tmp_path}/play.html')
    is_ready(page)
    knob, status, words = page.get_by_label('draw', exact=True), page.locator('.status').first, page.locator('.mixture .what')
    assert knob.evaluate('e => e.selectedOptions[0].text') == 'ship'
    sync_api.expect(status).to_contain_text('ship, 8 times, at sigma 0.30, drawn in this browser')
    ship = pixels(page, '.reverse')
    knob.select_option('frog')
    sync_api.expect(status).to_contain_text('frog, 8 times, at sigma 0.30, drawn in this browser')
    assert pixels(page, '.reverse') != ship
    knob.press('ArrowUp'), knob.press('ArrowDown'), knob.select_option('ship')
    sync_api.expect(status).to_contain_text('ship, 8 times')
    is_ready(page)
    assert pixels(page, '.reverse') == ship
    page.locator('.reverse canvas').focus(), page.keyboard.press('ArrowRight')
    sync_api.expect(words).to_contain_text('Image 1, row 9, column 10, two-step: drawn red')
    for name in ('.clean', '.complete'): assert not page.locator(name).is_visible(), name
    assert 'digit' not in page.locator('main').inner_text().lower() and not page.troubles

@in_browser
@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_on_a_phone(open_page, site, scheme):
    "390 pixels wide: nothing sticks out, and it draws; dark and light have papers of their own"
    page = open_page(f'file://{site[0]}/play.html', viewport={'width': 390, 'height': 800}, color_scheme=scheme, has_touch=True)
    is_ready(page)
    assert page.evaluate('document.documentElement.scrollWidth') == 390
    paper = page.locator('.ds').evaluate('e => getComputedStyle(e).backgroundColor')
    assert paper == {'light': 'rgb(255, 255, 255)', 'dark': 'rgb(22, 22, 26)'}[scheme]
    page.locator('.smooth canvas').tap()
    sync_api.expect(page.locator('.mixture .what')).to_contain_text('Digit')
    assert not page.troubles

# without a browser

def test_weights_go_through_the_file():
    small = random_pair(1)
    u = small.uniforms(2)
    torch.testing.assert_close(as_on_page(small, 'float32').sample(uniforms=u), small.sample(uniforms=u), atol=1e-5, rtol=0)
    sizes = [len(export_weights(small, d)) for d in ('float32', 'float16', 'int8')]
    assert sizes == sorted(sizes, reverse=True) and export_weights(small) == export_weights(small)
    assert set(as_on_page(small, {'smooth': 'int8'})._modules) == {'smooth'}

def test_what_cannot_be_exported_is_refused():
    with pytest.raises(ValueError, match='reverse must be a PixelCNNpp, for the page to draw it, got a StackedPixelCNNpp'): check_exportable(stacked_pair())
    with pytest.raises(ValueError, match='dtype must be'): export_weights(random_pair(), 'bfloat16')

def asked(sm, *groups):
    "What the widget of `sm` answers to messages (about, arrays); those of a group come at once"
    pytest.importorskip('anywidget')
    widget, sent = playground(sm), []
    assert widget.about['kernel'] == 'python' and not widget.weights
    answers, = widget._msg_callbacks.callbacks
    answers.send = lambda message, buffers=(): sent.append((message, list(buffers)))
    async def work():
        for group in groups:
            for about, arrays in group: answers(widget, about, [v.numpy().tobytes() for v in arrays])
            while answers.tasks: await asyncio.sleep(0)
    with ThreadPoolExecutor(1) as apart: apart.submit(asyncio.run, work()).result()  # playwright has a loop of its own here
    return sent

def wish(u, *id, **options): return dict(id=[*id], kind='draw', options=options, counts=[2, 0, 0]), u
def look(where, *id): return dict(id=[*id], kind='mixture', where=where), []

def test_a_model_that_stays_in_python_answers_the_page():
    "The messages of the widget, as its channel brings them"
    sm, where = stacked_pair(), dict(part='reverse', image=1, row=3, column=2)
    u = sm.uniforms(2)
    *sent, (mixture, _), (wrong, _) = asked(sm, [wish(u, 'a', 1, sigma=.4)], [look(where, 'a', 2)], [wish(u, 'a', 3, sigma=3)])
    assert [m['item'] for m, _ in sent[:-1]] == [dict(part=p, row=i) for p in ('smooth', 'reverse') for i in range(8)]
    x = np.frombuffer(sent[-1][1][0], np.float32)
    np.testing.assert_array_equal(x, sm.sample(uniforms=u, sigma=.4).flatten().numpy())
    assert mixture['value']['values'] == [x[64 + 26]]
    assert wrong['name'] == 'RangeError' and 'sigma' in wrong['error']

@pytest.mark.parametrize('name', TOLD)
def test_the_kernel_draws_a_class(name):
    "And its mixtures are those of the class"
    sm = random_pair(**TOLD[name])
    u, kernel, level = sm.uniforms(2, torch.Generator().manual_seed(2)), KernelSampler(sm), .3 if sm.smooth.sigma_range else .5
    for label in (1, 2):
        for _, _, x in kernel.draw(dict(sigma=level, label=label), u): pass
        torch.testing.assert_close(x, sm.sample(uniforms=u, sigma=level, label=label))
        assert kernel.mixture('reverse', 1, 7, 11)['values'] == x[1, :, 7, 11].tolist() and kernel.drawn['smooth'][0].conditions['label'] is not None

def test_a_class_that_is_not_there(tmp_path):
    pytest.importorskip('anywidget')
    for begin in (playground, functools.partial(write_page, tmp_path/'p')):
        with pytest.raises(ValueError, match=r'label must be a whole number in \[0, 2\], got 3'): begin(random_pair(n_classes=3), label=3)
        with pytest.raises(ValueError, match='label must be None.*got 0'): begin(random_pair(), label=0)
    assert not list((tmp_path/'p').glob('*'))

def test_what_classes_are_called():
    pytest.importorskip('anywidget')
    assert playground(random_pair(n_classes=10), label=3).about['classes'][3] == 'cat'
    assert playground(random_pair(n_classes=3)).about['classes'] == ['class 0', 'class 1', 'class 2'] and playground(random_pair()).about['classes'] is None

def test_the_kernel_leaves_a_drawing_for_a_newer_one():
    "Of the same view; another view draws on, and its pixels are its own"
    sm, where = stacked_pair(), dict(part='smooth', image=0, row=3, column=2)
    u, v = sm.uniforms(1), sm.uniforms(1)
    sent = [m for m, _ in asked(sm, [wish(u, 'a', 1), wish(v, 'b', 1), wish(u, 'a', 2)], [look(where, 'a', 3), look(where, 'b', 2), look(where, 'c', 1)])]
    assert [m['id'] for m in sent if m.get('name') == 'AbortError'] == [['a', 1]]
    answers = {(*m['id'],): m['value'] for m in sent if 'value' in m}
    assert answers.keys() == {('a', 2), ('b', 1), ('a', 3), ('b', 2), ('c', 1)}
    assert answers['a', 3]['uniforms'] == u[0][0, :, 3, 2].tolist() and answers['b', 2]['uniforms'] == v[0][0, :, 3, 2].tolist() and not answers['c', 1]

def test_the_kernel_is_what_its_source_compiles_to():
    "With the compiler that is named, where npm can fetch it"
    if not shutil.which('npx'): pytest.skip('needs npm to compile kernel.ts')
    get = subprocess.run(['npx', '--yes', '-p', COMPILER, 'asc', '--version'], capture_output=True, text=True, timeout=300, cwd=os.path.dirname(__file__))
    if get.returncode: pytest.skip(f'npm could not fetch {COMPILER}')
    assert compile_kernels() == kernels()
