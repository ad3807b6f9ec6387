"Measuring: the same images as `sample`, rows that add up, memory that grows as it should, and requests that are refused before anything is timed."
import gc
import json
import os
import sys
import time
from types import SimpleNamespace
import pytest
import torch
from torch.testing import assert_close
from distsmooth.engine import bench
from distsmooth.engine.bench import REPORT_HOURS, as_line, bench_sampling, kept_bytes, parts, pass_seconds, peak_memory, precision_effect, run, seconds
from distsmooth.made import MADE
from distsmooth.pipeline import SmoothedModel
from distsmooth.pixelcnn import PixelCNNpp
from distsmooth.autoregressive import METHODS
from distsmooth.smoothing import GaussianKernel

SMALL = dict(n_filters=4, n_resnet=1, n_mix=2)
def pixels(size=8, **kwargs): return PixelCNNpp(size=size, **SMALL | kwargs).eval()
def made(**kwargs): return MADE((2, 3), n_mix=2, **kwargs).eval()
def two(net=made, **kwargs): return SmoothedModel(net(**kwargs), net(head='discretized', context_channels=1, **kwargs), GaussianKernel(.5)).eval()
MODELS = {'pixels': pixels, 'made': made, 'colours': lambda: pixels(channels=3), 'two': two, 'two pixels': lambda: two(pixels)}
KEYS = {'network', 'n', 'method', 'seconds', 'extrapolated', 'sweeps', 'peak_bytes', 'kept_bytes', 'passes', 'ratio',
        'images_per_second', 'hours_per_2000', 'hours_in_report'}

@pytest.fixture
def tiny(monkeypatch):
    "Two networks that are quick to time: an untrained one, and one with both parts"
    monkeypatch.setitem(bench.NETWORKS, 'one', pixels)
    monkeypatch.setitem(bench.NETWORKS, 'two', two)
    monkeypatch.setitem(REPORT_HOURS, 'one', 3.)

def seeded(): return torch.Generator().manual_seed(0)

@pytest.mark.parametrize('make', MODELS.values(), ids=MODELS)
def test_run_draws_what_sample_draws(make):
    model = make()
    u = model.uniforms(3, seeded())
    x, items = run(model, u)
    assert_close(x, model.sample(uniforms=u), rtol=0, atol=0)
    assert items == sum(p.size[0] for p in parts(model))

@pytest.mark.parametrize('method', METHODS)
def test_run_hands_its_arguments_on(method):
    model = two().double()
    u = model.uniforms(2, seeded())
    x, items = run(model, u, method=method)
    assert_close(x, model.sample(uniforms=u, method='naive'), rtol=0, atol=1e-8)
    assert items >= 2 and not torch.equal(x, run(model, u, method=method, temperature=.3)[0])

def test_parts_are_the_networks_that_draw():
    sm, net = two(), made()
    assert parts(sm) == [sm.smooth, sm.reverse] and parts(net) == [net]
    with pytest.raises(ValueError, match='must have a reverse network'): parts(SmoothedModel(made()))

@pytest.fixture
def clock(monkeypatch):
    "A clock that stands still until `clock[0]` is set forward"
    now = [100.]
    monkeypatch.setattr(bench, 'time', SimpleNamespace(perf_counter=lambda: now[0]))
    return now

def test_seconds_are_those_of_the_work(clock):
    def work(): clock[0] += 2.5
    assert seconds(work) == 2.5 and seconds(lambda: None) == 0

def test_the_price_of_a_pass_is_the_median_without_the_first(clock):
    sm, takes = two(), iter([99., 1., 7., 2.])
    sm.smooth.register_forward_hook(lambda *_: clock.__setitem__(0, clock[0] + next(takes)))
    assert pass_seconds(sm, 5, repeats=3) == 2. and next(takes, None) is None

@pytest.mark.parametrize('make', MODELS.values(), ids=MODELS)
def test_every_model_has_a_price(make):
    for dtype in (None, torch.bfloat16): assert pass_seconds(make(), 2, 1, dtype) > 0

def test_a_pass_is_one_call_of_every_network():
    sm, calls = two(), []
    for p in parts(sm): p.register_forward_hook(lambda net, inputs, out: calls.append((len(inputs[0]), net.context_channels, torch.is_grad_enabled())))
    pass_seconds(sm, 5, repeats=2)
    assert calls == 3*[(5, 0, False), (5, 1, False)]     # one to warm up, two that are timed

def test_rows_are_complete_and_add_up(tiny):
    seen = []
    result = bench_sampling(['one:2', 'two:3'], repeats=1, device='cpu', report=seen.append)
    rows = result['rows']
    assert seen == rows and all(set(r) == KEYS for r in rows)
    assert [(r['network'], r['n'], r['method']) for r in rows] == [
        ('one', 2, 'naive'), ('one', 2, 'cached'), ('two', 3, 'naive'), ('two', 3, 'cached'), ('two', 3, 'jacobi'), ('two', 3, 'jacobi_rows')]
    assert set(result['machine']) == {'device', 'threads', 'torch', 'dtype'} and result['machine']['dtype'] == 'float32'
    for name, pixels_ in (('one', 64), ('two', 6)):
        naive, *others = [r for r in rows if r['network'] == name]
        assert naive['extrapolated'] and naive['ratio'] == 1 and naive['kept_bytes'] is None
        assert_close(naive['passes'], float(pixels_))
        for r in (naive, *others):
            assert r['seconds'] > 0 and (r['peak_bytes'] is None or r['peak_bytes'] >= 0)
            assert_close(r['ratio'], naive['seconds']/r['seconds'])
            assert_close(r['passes']*naive['seconds'], r['seconds']*pixels_)
            assert_close(r['images_per_second'], r['n']/r['seconds'])
            assert_close(r['hours_per_2000'], 2000/r['images_per_second']/3600)
            assert r['hours_in_report'] == (3. if name == 'one' else None)
        assert not any(r['extrapolated'] for r in others)
        assert all((r['sweeps'] is not None) == r['method'].startswith('jacobi') for r in (naive, *others))
        assert all((r['kept_bytes'] is not None) == (r['method'] == 'cached') for r in (naive, *others))
    assert json.loads(json.dumps(result)) == result

def test_rows_count_real_sweeps_and_real_memory(tiny):
    rows = {r['method']: r for r in bench_sampling(['two:2'], ['jacobi'], 1, 'cpu')['rows']}
    torch.manual_seed(0)
    model = two()
    assert rows['jacobi']['sweeps'] == run(model, model.uniforms(2, seeded()), method='jacobi')[1]
    assert bench_sampling(['one:2'], ['cached'], 1, 'cpu')['rows'][1]['kept_bytes'] == kept_bytes(pixels(), 2)

def test_a_measured_naive_run_is_not_marked_as_extrapolated(tiny, clock, monkeypatch):
    "A pass takes 2 seconds here, and a run 96: three quarters of the 64 passes"
    monkeypatch.setattr(bench, 'pass_seconds', lambda *_: 2.)
    whole = bench.run
    def run(*args, **how): clock[0] += 96; return whole(*args, **how)
    monkeypatch.setattr(bench, 'run', run)
    guessed, measured = bench_sampling(['one:4'], ['naive'], 3, 'cpu')['rows']
    assert guessed['extrapolated'] and not measured['extrapolated'] and measured['sweeps'] is None
    assert (guessed['seconds'], guessed['passes'], guessed['ratio'], guessed['images_per_second']) == (128, 64, 1, 4/128)
    assert (measured['seconds'], measured['passes'], measured['images_per_second']) == (96, 48, 4/96)
    assert_close(measured['ratio'], 128/96); assert_close(measured['hours_per_2000'], 96/4*2000/3600)

def test_the_run_that_is_watched_is_not_the_one_that_is_timed(tiny, clock, monkeypatch):
    monkeypatch.setattr(bench, 'pass_seconds', lambda *_: 2.)
    took, whole = iter([50., 3., 9., 4., 60.]), bench.run
    def run(*args, **how): clock[0] += next(took); return whole(*args, **how)
    monkeypatch.setattr(bench, 'run', run)
    assert bench_sampling(['one:2'], ['cached'], 3, 'cpu')['rows'][1]['seconds'] == 4 and next(took) == 60

def test_half_the_bits_are_named(tiny):
    result = bench_sampling(['one:16'], ['cached'], 1, 'cpu', torch.bfloat16)
    assert result['machine']['dtype'] == 'bfloat16'
    assert 2*result['rows'][1]['kept_bytes'] == kept_bytes(pixels(), 16)

def test_lines_fit_under_the_headings(tiny):
    for row in bench_sampling(['two:3'], ['cached', 'jacobi'], 1, 'cpu')['rows']:
        line = as_line(row)
        assert line.split()[:3] == ['two', '3', row['method']]
        assert len(line.split(' (')[0]) == len(as_line())
        assert ('one timed pass' in line) == row['extrapolated'] and ('sweeps' in line) == (row['sweeps'] is not None)
    assert len(as_line(row | dict(peak_bytes=None, sweeps=None))) == len(as_line())

def test_what_is_kept_does_not_depend_on_the_height():
    assert len({kept_bytes(pixels((h, 8)), 16) for h in (8, 16, 32)}) == 1

def test_what_is_kept_is_a_line_in_width_and_images():
    kept = {w: kept_bytes(pixels((8, w)), 16) for w in (8, 16, 24, 48)}
    assert kept[24] - kept[16] == kept[16] - kept[8] > 0 and kept[48] - kept[24] == 3*(kept[16] - kept[8])
    one = kept_bytes(pixels(), 16)
    assert [kept_bytes(pixels(), n) for n in (32, 48)] == [2*one, 3*one]
    assert kept_bytes(pixels().double(), 16) == 2*one == 4*kept_bytes(pixels(), 16, torch.bfloat16)

def test_what_is_kept_excludes_weights():
    "A network that keeps nothing has weights too; more components of the mixture are weights of the last layer alone"
    assert kept_bytes(made(), 16) == 0
    assert sum(p.numel() for p in pixels(n_mix=9).parameters()) > sum(p.numel() for p in pixels().parameters())
    assert kept_bytes(pixels(n_mix=9), 16) == kept_bytes(pixels(), 16)
    assert 0 < kept_bytes(pixels(), 1) < kept_bytes(pixels(), 16)

def test_context_features_are_kept_for_the_whole_image():
    extra = {h: kept_bytes(pixels((h, 8), context_channels=1), 16) - kept_bytes(pixels((h, 8)), 16) for h in (8, 16)}
    for h, more in extra.items(): assert more == 16*4*2*4*h*8*(1 + 1/4 + 1/16)    # images, bytes, 2*n_filters, positions of three resolutions

def test_two_networks_keep_what_each_keeps():
    sm = two(pixels)
    assert kept_bytes(sm, 16) == kept_bytes(sm.smooth, 16) + kept_bytes(sm.reverse, 16)

def test_peak_memory_sees_what_is_held_and_what_is_gone():
    with peak_memory() as nothing: pass
    with peak_memory() as held: block = torch.ones(80, 2**20, dtype=torch.uint8)
    del block
    with peak_memory() as gone:
        block, patience = torch.ones(80, 2**20, dtype=torch.uint8), 500
        while gone() is not None and gone() < 70e6 and (patience := patience - 1): time.sleep(.01)   # until it has been looked at
        del block
    if nothing() is None: pytest.skip('this system does not say how much memory a process holds')
    assert held() > 70e6 and gone() > 70e6 and nothing() < 40e6

@pytest.mark.filterwarnings('error')
@pytest.mark.skipif(not os.path.exists('/proc/self/statm'), reason='this system has no such file')
def test_looking_at_memory_leaves_no_file_open():
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, 'unraisablehook', seen.append)
        for _ in range(3): assert bench._resident() > 0
        gc.collect()
    assert not seen

def test_peak_memory_survives_an_error():
    with pytest.raises(RuntimeError, match='boom'):
        with peak_memory() as peak: raise RuntimeError('boom')
    assert peak() is None or peak() < 40e6

def test_precision():
    model = pixels()
    u = model.uniforms(4, seeded())
    same = precision_effect(model, u, torch.float32)
    assert same['same_within_001'] == 1 and same['nats_per_dim'] == same['nats_per_dim_coarse']
    assert_close(same['nats_per_dim'], -model.log_prob(model.sample(uniforms=u)).mean().item()/model.dims)
    coarse = precision_effect(model, u)
    assert coarse['nats_per_dim'] == same['nats_per_dim'] and 0 <= coarse['same_within_001'] <= 1
    assert abs(coarse['nats_per_dim_coarse'] - coarse['nats_per_dim']) < .2

BAD = {
    'network': (dict(cases=['cats:16']), "cases must be like 'mnist:16'.*got 'cats:16'"),
    'no count': (dict(cases=['one']), "got 'one'"),
    'none at all': (dict(cases=['one:0']), "got 'one:0'"),
    'not a number': (dict(cases=['one:²']), "got 'one:²'"),
    'the second case': (dict(cases=['one:1', 'one:-3']), "got 'one:-3'"),
    'method': (dict(cases=['one:1'], methods=['cached', 'magic']), "methods must be one of .*got 'magic'"),
    'repeats': (dict(cases=['one:1'], repeats=0), 'repeats must be a whole number of at least 1, got 0'),
    'device': (dict(cases=['one:1'], device='abacus'), "device must be one of .*'cpu'.*got 'abacus'"),
}
@pytest.mark.parametrize('request_, says', BAD.values(), ids=BAD)
def test_faults_are_found_before_anything_is_timed(tiny, request_, says):
    rows = []
    with pytest.raises(ValueError, match=says): bench_sampling(**request_, report=rows.append)
    assert not rows

@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')
def test_a_gpu_that_is_not_there(tiny):
    with pytest.raises(ValueError, match="device must be one of .*'cpu'.* got 'cuda'"): bench_sampling(['one:1'], device='cuda')

def test_the_published_configurations():
    mnist, cifar = (bench.NETWORKS[name]() for name in ('mnist', 'cifar10'))
    assert (mnist.channels, mnist.size) == (1, (28, 28)) and (cifar.channels, cifar.size) == (3, (32, 32))
    assert set(REPORT_HOURS) <= set(bench.NETWORKS)
