"""What a training step costs: figures that follow from the seconds, whatever they are; a clock that leaves the first steps out; systems that lack a module."""
import inspect
import json
import subprocess
import sys
import pytest
import torch
from torch.testing import assert_close
from distsmooth import cli, registry
from distsmooth.engine import bench_training as bt
from distsmooth.engine.bench_training import TRAINED, VARIANTS, WARM_UP, bench_training, ceiling, flop, make_run, measure, training_line
from distsmooth.pixelcnn import PixelCNNpp
from distsmooth.training import Trainer

KEYS = {'network', 'batch_size', 'variant', 'ceiling', 'failed', 'seconds', 'images_per_second', 'ratio', 'flop_per_second', 'share', 'first_step',
        'peak_bytes', 'hours_per_100_epochs'}
SECONDS = {'plain': ([4., 6., 5.], [5., 90., 5.]), 'fused': ([2., 2., 2.], [3., 2., 2.]), 'compile': ([1., 1., 1.], [1., 1., 1.]), 'bf16': ([10.]*3, [10.]*3)}

@pytest.fixture
def tiny(monkeypatch):
    "A network that is quick to train, with 7200 images an epoch"
    monkeypatch.setitem(TRAINED, 'tiny', (lambda: PixelCNNpp(size=4, n_filters=2, n_resnet=1, n_mix=1), 7200))

@pytest.fixture
def told(tiny, monkeypatch):
    "Processes that take the seconds of `SECONDS`; rates of 1e8 FLOP/s for float32 and 4e8 for bfloat16"
    asked, products = [], []
    def in_a_process(network, batch_size, variant, steps, device):
        asked.append(variant)
        nth = asked.count(variant) - 1
        return dict(seconds=SECONDS[variant][nth], first_step=100. + nth, peak_bytes=1000*(nth + 1))
    def rate(device, dtype): products.append(dtype); return {torch.float32: 1e8, torch.bfloat16: 4e8}[dtype]
    monkeypatch.setattr(bt, '_in_a_process', in_a_process)
    monkeypatch.setattr(bt, 'ceiling', rate)
    return asked, products

# arithmetic
def test_figures_follow_from_the_seconds(told):
    seen, (asked, products) = [], told
    result = bench_training(['tiny:10'], list(SECONDS), device='cpu', report=seen.append)
    assert seen == result['rows'] and all(set(r) == KEYS for r in seen) and json.loads(json.dumps(result)) == result
    assert asked == 2*list(SECONDS)                                          # in turns
    assert sorted(map(str, products)) == ['torch.bfloat16', 'torch.float32']  # once for each type
    work = flop(make_run('tiny', 1))*10
    for r, took, top in zip(seen, (5., 2., 1., 10.), (1e8, 1e8, 1e8, 4e8), strict=True):
        assert (r['network'], r['batch_size'], r['failed']) == ('tiny', 10, None)
        want = dict(seconds=took, images_per_second=10/took, ratio=5/took, flop_per_second=work/took, ceiling=top, share=work/took/top,
                    first_step=100.5, peak_bytes=2000, hours_per_100_epochs=100*7200/(10/took)/3600)
        assert_close({k: r[k] for k in want}, want)
    assert set(result['machine']) == {'device', 'threads', 'torch', 'dtype'}

def test_the_first_variant_is_the_baseline(told):
    rows = bench_training(['tiny:10'], ['compile', 'plain'], device='cpu')['rows']
    assert [r['ratio'] for r in rows] == [1., .2]

def test_several_networks_have_one_ceiling(told):
    rows = bench_training(['tiny:1', 'tiny:2'], ['plain'], repeats=1, device='cpu')['rows']
    assert [r['batch_size'] for r in rows] == [1, 2] and told[1] == [torch.float32]

def test_what_is_compared_if_nothing_is_said():
    "The command and the function agree, and a compiler is among what they compare"
    of = lambda f: list(inspect.signature(f).parameters['variants'].default)
    assert of(bench_training) == of(cli.training) == ['plain', 'fused', 'compile', 'bf16'] and set(of(cli.training)) < set(VARIANTS)
    assert VARIANTS['compile']['compile'] and VARIANTS['bf16']['bf16'] and not VARIANTS['plain']

def test_a_variant_that_fails_has_a_row_that_says_so(told, monkeypatch):
    whole = bt._in_a_process
    monkeypatch.setattr(bt, '_in_a_process', lambda **what: dict(failed='no compiler') if what['variant'] == 'compile' else whole(**what))
    plain, compiled, half = bench_training(['tiny:10'], ['plain', 'compile', 'bf16'], device='cpu')['rows']
    assert compiled['failed'] == 'no compiler' and 'seconds' not in compiled and half['ratio'] == .5
    assert training_line(compiled).split() == ['tiny', '10', 'compile', 'failed:', 'no', 'compiler']
    with pytest.raises(RuntimeError, match='tiny:10 compile failed: no compiler'): bench_training(['tiny:10'], ['compile', 'plain'], device='cpu')

def test_lines_fit_under_the_headings(told):
    for row in bench_training(['tiny:10'], list(SECONDS), device='cpu')['rows']:
        for r in (row, row | dict(peak_bytes=None)): assert len(training_line(r)) == len(training_line()) and training_line(r).split()[:3] == ['tiny', '10', row['variant']]
    assert '1st step s' in training_line() and ' 100.5 ' in training_line(row)

# the real thing
def test_the_first_steps_are_timed_apart(tiny, monkeypatch):
    monkeypatch.setattr(bt, 'seconds', lambda work, device: (work(), next(clock))[1])
    clock = iter(range(1, 99))
    got = measure('tiny', 2, 'fused', steps=3)
    assert WARM_UP >= 1 and got['first_step'] == 1 and got['seconds'] == [WARM_UP + i for i in (1, 2, 3)] and next(clock) == WARM_UP + 4

def test_variants_are_what_they_say(tiny, monkeypatch):
    seen = []
    def advance(run): seen.append((registry._state['plain'], run.config.bf16, run.config.compile)); return 0.
    monkeypatch.setattr(Trainer, 'advance', advance)
    got = {v: measure('tiny', 2, v, steps=1) for v in VARIANTS}
    assert [set(seen[i:i + WARM_UP + 1]) for i in range(0, len(seen), WARM_UP + 1)] == [
        {(True, False, False)}, {(False, False, False)}, {(False, False, True)}, {(False, True, False)}, {(False, True, True)}]
    assert all(set(g) == {'seconds', 'first_step', 'peak_bytes'} and len(g['seconds']) == 1 for g in got.values())

@pytest.mark.parametrize('variant', ['plain', 'fused', 'bf16'])
def test_steps_are_steps(tiny, variant):
    got = measure('tiny', 2, variant, steps=2)
    assert len(got['seconds']) == 2 and all(t > 0 for t in (*got['seconds'], got['first_step'])) and (got['peak_bytes'] is None or got['peak_bytes'] >= 0)

def test_a_process_of_its_own():
    rows = bench_training(['digits:1'], ['plain', 'fused'], repeats=1, steps=1, device='cpu')['rows']
    assert [r['variant'] for r in rows] == ['plain', 'fused'] and all(set(r) == KEYS and r['failed'] is None and r['seconds'] > 0 for r in rows)
    assert rows[0]['ratio'] == 1 and rows[0]['ceiling'] == rows[1]['ceiling'] > 0
    words = bt._in_a_process(network='cats', batch_size=1, variant='plain')
    assert words == dict(failed="ValueError: network must be one of ['digits', 'mnist', 'cifar10'], got 'cats'")

def test_flop_are_proportional_to_the_images(tiny):
    assert flop(make_run('tiny', 6)) == 6*flop(make_run('tiny', 1)) > 0
    run = make_run('tiny', 2)
    flop(run)
    assert run.step == 0 and all(p.grad is None for p in run.model.parameters())

def test_the_ceiling_counts_a_product(monkeypatch):
    times = iter([4., 2., 8.])
    monkeypatch.setattr(bt, 'seconds', lambda work, device: (work(), next(times))[1])
    assert ceiling(n=10, within=10.) == 2*10**3/2                             # a multiplication and an addition each; the best time

@pytest.mark.parametrize('request_, says', [(dict(cases=['cats:1']), "got 'cats:1'"), (dict(cases=['mnist']), "got 'mnist'"), (dict(cases=['mnist:0']), "got 'mnist:0'"),
    (dict(variants=['magic']), "got 'magic'"), (dict(variants=[]), 'got None'), (dict(repeats=0), 'repeats must be a whole number of at least 1, got 0'), (dict(steps=0), 'steps must be a whole number of at least 1, got 0'), (dict(device='abacus'), "got 'abacus'")])
def test_faults_are_found_before_anything_is_timed(told, request_, says):
    with pytest.raises(ValueError, match=says): bench_training(**request_)
    assert told == ([], [])

# systems that lack a module
LACKING = """
import sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name in ('resource', 'fcntl'): raise ImportError(f'{name} is for Unix')
for name in ('resource', 'fcntl'): sys.modules.pop(name, None)
sys.meta_path.insert(0, Finder())
"""
def lacking(code): return subprocess.run([sys.executable, '-c', LACKING + code], capture_output=True, text=True, cwd='/')

def test_every_module_imports_without_unix():
    done = lacking("""
import importlib, pkgutil
import distsmooth
for m in pkgutil.walk_packages(distsmooth.__path__, 'distsmooth.'):
    if not m.name.endswith('__main__'): importlib.import_module(m.name); print(m.name)
from distsmooth.engine.bench_training import _highest
assert _highest('cpu') is None
""")
    assert not done.returncode, done.stderr
    assert {'distsmooth.engine.bench_training', 'distsmooth.engine.checkpoint', 'distsmooth.cli'} <= set(done.stdout.split())

def test_the_command_helps_without_unix():
    done = lacking("sys.argv = ['distsmooth', '--help']\nfrom distsmooth.cli import main\nmain()")
    assert not done.returncode and 'bench' in done.stdout, done.stderr

def test_memory_is_left_out_where_the_system_does_not_say(tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, 'resource', None)
    assert measure('tiny', 1, 'plain', steps=1)['peak_bytes'] is None
