"""Fast equals slow: every sampler draws the same images from the same uniforms, for every kind of model, whatever is known beforehand."""
import pytest
import torch
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from distsmooth import sampling
from distsmooth.conditional import StackedPixelCNNpp
from distsmooth.incremental import folded
from distsmooth.logistic import TRANSFORMS
from distsmooth.made import MADE
from distsmooth.pixelcnn import PixelCNNpp
from distsmooth.sampling import METHODS, Recorded, draw

FAST = [m for m in METHODS if m != 'naive']
SMALL = dict(size=8, n_filters=4, n_resnet=1, n_mix=2)

def network(kind=PixelCNNpp, **config):
    torch.manual_seed(0)
    net = kind(**{**SMALL, **config}).double()
    with torch.no_grad():
        for p in net.parameters(): p += .03*torch.randn_like(p)    # biases too, and gains that are not norms
    return net

def inputs(net, n):
    g = torch.Generator().manual_seed(1)
    context = torch.randn(n, net.context_channels, *net.size, dtype=torch.float64, generator=g) if net.context_channels else None
    classes = getattr(net, 'n_classes', 0) or getattr(getattr(net, 'net', None), 'n_classes', 0)
    return dict(uniforms=net.uniforms(n, g), context=context, **({'label': torch.arange(n) % classes} if classes else {}))

KINDS = {
    'grey': lambda: network(), 'two blocks': lambda: network(n_resnet=2), 'colours': lambda: network(channels=3),
    'discretized': lambda: network(head='discretized'), 'discretized colours': lambda: network(channels=3, head='discretized'),
    'tall': lambda: network(size=(12, 4)), 'wide': lambda: network(size=(4, 20)), 'labels': lambda: network(n_classes=3),
    'encoder': lambda: network(context_channels=2), 'encoder and labels': lambda: network(channels=3, context_channels=3, n_classes=2),
    'stacked': lambda: network(StackedPixelCNNpp), 'stacked colours with labels': lambda: network(StackedPixelCNNpp, channels=3, n_classes=2, head='discretized'),
    'no steps of its own': lambda: MADE((3, 4), n_mix=2).double()}

@pytest.mark.parametrize('method', FAST)
@pytest.mark.parametrize('kind', KINDS)
def test_same_uniforms_same_sample(kind, method):
    net = KINDS[kind]()
    given = inputs(net, 3)
    slow = net.sample(method='naive', **given)
    assert_close(net.sample(method=method, **given), slow, rtol=0, atol=1e-8)
    assert slow.std() > 0 and slow.isfinite().all()

@pytest.mark.parametrize('n', [1, 16, 17, 33])
def test_any_number_of_images(n):
    "The columns are padded to 16: what stands in the padding has no say"
    net = network(n_classes=3)
    given = inputs(net, n)
    together = net.sample(**given)
    assert_close(together, net.sample(method='naive', **given), rtol=0, atol=1e-8)
    last = {k: None if v is None else v[-1:] for k, v in given.items()}
    assert_close(net.sample(**last), together[-1:], rtol=0, atol=1e-8)

@pytest.mark.parametrize('temperature', [.5, 1., 1.5])
@pytest.mark.parametrize('transform', TRANSFORMS)
@pytest.mark.parametrize('kind', ['grey', 'discretized colours', 'stacked'])
def test_every_rule(kind, transform, temperature):
    net = KINDS[kind]()
    given = dict(inputs(net, 2), transform=transform, temperature=temperature)
    slow = net.sample(method='naive', **given)
    for method in FAST: assert_close(net.sample(method=method, **given), slow, rtol=0, atol=1e-7)
    if temperature != 1: assert not torch.equal(slow, net.sample(method='naive', **{**given, 'temperature': 1.}))

def masks(net, n, seed=0):
    H, W = net.size
    g, rows = torch.Generator().manual_seed(seed), torch.arange(H)[:, None].expand(H, W)
    return {'nothing': torch.zeros(H, W, dtype=torch.bool), 'everything': torch.ones(H, W, dtype=torch.bool), 'upper half': rows < H//2, 'lower half': rows >= H//2,
            'five rows and a bit': (rows < 5) | (torch.rand(H, W, generator=g) < .3), 'each its own': torch.rand(n, 1, H, W, generator=g) < .5}

@pytest.mark.parametrize('which', ['nothing', 'everything', 'upper half', 'lower half', 'five rows and a bit', 'each its own'])
@pytest.mark.parametrize('kind', ['grey', 'encoder', 'stacked'])
def test_known_pixels_are_kept_and_the_rest_is_conditional(kind, which):
    net = KINDS[kind]()
    given, mask = inputs(net, 3), masks(net, 3)[which]
    known = torch.randn(3, net.channels, *net.size, dtype=torch.float64)
    slow = net.sample(method='naive', known=known, mask=mask, **given)
    kept = mask.expand(3, net.channels, *net.size) if mask.ndim == 2 else mask.expand(-1, net.channels, -1, -1)
    assert torch.equal(slow[kept], known[kept])
    for method in FAST:
        fast = net.sample(method=method, known=known, mask=mask, **given)
        assert torch.equal(fast[kept], known[kept])
        assert_close(fast, slow, rtol=0, atol=1e-8)
    if which == 'nothing': assert_close(slow, net.sample(**given), rtol=0, atol=1e-8)
    if which == 'upper half': assert (slow - net.sample(**given))[..., net.size[0]//2:, :].abs().max() > 1e-6   # what is known has a say below

def test_completion_by_hand():
    "Each pixel is drawn from the conditional that one pass over the finished image reports"
    net = network().eval()
    u, mask = net.uniforms(2), torch.rand(8, 8) < .5
    known = torch.randn(2, 1, 8, 8, dtype=torch.float64)
    x = net.sample(uniforms=u, known=known, mask=mask)
    with torch.no_grad(): says = net.mixture(net(x)).sample(u)
    assert_close(x, torch.where(mask, known, says), rtol=0, atol=1e-8)

def test_one_image_is_known_for_all():
    net = network()
    known, mask = torch.randn(1, 1, 8, 8, dtype=torch.float64), torch.rand(8, 8) < .5
    x = net.sample(5, known=known, mask=mask)
    assert torch.equal(x[:, :, mask], known[:, :, mask].expand(5, -1, -1)) and (x[0] != x[1]).any()

# Jacobi

@pytest.mark.parametrize('method', ['jacobi', 'jacobi_rows'])
@pytest.mark.parametrize('kind', ['encoder', 'tall'])
def test_rows_that_jacobi_calls_final_are_final(kind, method):
    net = KINDS[kind]()
    given = inputs(net, 2)
    items = [(i, x.clone()) for i, x in draw(net, method=method, **given)]
    last = items[-1][1]
    assert items[-1][0] == net.size[0] - 1 and [i for i, _ in items] == sorted(i for i, _ in items)
    for i, x in items: assert torch.equal(x[:, :, :i+1], last[:, :, :i+1])
    strips = 1 if method == 'jacobi' else net.size[0]//4
    assert strips < len(items) <= net.size[0]*net.size[1] + strips

def test_jacobi_needs_two_sweeps_for_independent_pixels():
    class Free(MADE):
        def forward(self, x, context=None): return super().forward(0*x)
    net = Free((3, 4), n_mix=2)
    assert len(list(draw(net, net.uniforms(2), method='jacobi'))) == 2

def test_jacobi_does_not_depend_on_the_first_guess():
    net = network()
    u = net.uniforms(2)
    out = torch.empty(2, 1, 8, 8, dtype=torch.float64)
    rows = draw(net, u, method='jacobi', out=out)
    out.normal_()
    for _ in rows: pass
    assert_close(out, net.sample(uniforms=u), rtol=0, atol=1e-8)

# recording rows, as a GPU does

class Tape(TorchDispatchMode):
    "Stands in for a CUDA graph: notes every operation with the very tensors it reads and writes; playing it back runs no Python of the sampler"
    def __init__(self): super().__init__(); self.played, self.notes = 0, []
    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        result = op(*args, **(kwargs or {}))
        if not op.is_view: self.notes.append((op, args, kwargs or {}, result))
        return result
    def play(self):
        self.played += 1
        if self.played == 1: return    # unlike a graph, the tape has done the work while it was recorded
        for op, args, kwargs, result in self.notes:
            for old, new in zip(*([r] if torch.is_tensor(r) else r for r in (result, op(*args, **kwargs)))):
                if new is not old: old.copy_(new)

class Recorder:
    def __init__(self): self.tapes = []
    def __call__(self, work):
        self.tapes.append(Tape())
        with self.tapes[-1]: work()
        return self.tapes[-1].play

def refuse(work): raise RuntimeError('operation not permitted when stream is capturing')

def sample_recorded(monkeypatch, net, given, record):
    "What happens on a GPU: every row of pixels goes through `Recorded`"
    with monkeypatch.context() as patch:
        patch.setattr(sampling, '_recorded', lambda f, x: Recorded(f, record))
        return net.sample(**given)

@pytest.mark.parametrize('how', [{}, dict(transform='icdf', temperature=.8), dict(mask='five rows and a bit')])
@pytest.mark.parametrize('kind', ['tall grey', 'discretized colours', 'encoder and labels', 'stacked'])
def test_recorded_rows_give_the_same_sample(monkeypatch, kind, how):
    net, record = network(size=(24, 8)) if kind == 'tall grey' else KINDS[kind](), Recorder()
    given = dict(inputs(net, 3), **how)
    if 'mask' in how: given |= dict(mask=masks(net, 3)[how['mask']], known=torch.randn(3, net.channels, *net.size, dtype=torch.float64))
    assert torch.equal(sample_recorded(monkeypatch, net, given, record), net.sample(**given))
    if kind == 'tall grey' and not how: assert [t.played for t in record.tapes] == [11, 5, 5]    # 24 rows of three phases, each run once before it is recorded

@pytest.mark.parametrize('kind', ['grey', 'stacked'])
def test_where_recording_fails_the_rows_are_drawn_all_the_same(monkeypatch, kind):
    net = KINDS[kind]()
    given = inputs(net, 3)
    assert torch.equal(sample_recorded(monkeypatch, net, given, refuse), net.sample(**given))

def test_recorded_runs_then_records_then_replays():
    log = []
    def record(work):
        log.append('record')
        return lambda: log.append('replay')
    f = Recorded(lambda *args: log.append(args), record)
    for args in ((0,), (1, 'a'), (0,), (0,), (1, 'a')): f(*args)
    assert log == [(0,), (1, 'a'), 'record', 'replay', 'replay', 'record', 'replay']

def test_what_cannot_be_recorded_runs_as_it_is():
    log = []
    f = Recorded(log.append, refuse)
    for _ in range(3): f(0)
    assert log == [0, 0, 0]

@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
@pytest.mark.parametrize('kind', ['grey', 'colours', 'stacked'])
def test_on_a_gpu(kind):
    net = KINDS[kind]()
    given = inputs(net, 3)
    slow = net.sample(**given)
    there = {k: None if v is None else v.cuda() for k, v in given.items()}
    assert_close(net.cuda().sample(**there).cpu(), slow, rtol=0, atol=1e-8)

# arithmetic, interruption, faults

@pytest.mark.parametrize('kind', ['grey', 'encoder', 'stacked', 'no steps of its own'])
@pytest.mark.parametrize('method', METHODS)
def test_bfloat16_networks_make_float32_samples(kind, method):
    net = KINDS[kind]().float()
    given = {k: v.float() if torch.is_tensor(v) and v.is_floating_point() else v for k, v in inputs(net, 2).items()}
    x, y = net.sample(method=method, **given), net.sample(method=method, dtype=torch.bfloat16, **given)
    assert y.dtype == torch.float32 and y.isfinite().all() and not torch.equal(x, y)
    assert next(net.parameters()).dtype == torch.float32
    if method == 'cached' and kind != 'no steps of its own': assert (y - y.bfloat16().float()).abs().max() > 0    # the mixtures are not rounded

def test_an_interrupted_run_keeps_its_rows_and_can_go_on():
    net = network()
    u, out = net.uniforms(2), torch.full((2, 1, 8, 8), 7., dtype=torch.float64)
    whole = net.sample(uniforms=u)
    with pytest.raises(KeyboardInterrupt):
        for i, _ in draw(net, u, out=out):
            if i == 4: raise KeyboardInterrupt
    assert_close(out[:, :, :5], whole[:, :, :5], rtol=0, atol=0)
    done = torch.arange(8)[:, None].expand(8, 8) < 5
    assert_close(net.sample(uniforms=u, known=out.clone(), mask=done), whole, rtol=0, atol=1e-8)
    assert net.sample(uniforms=u, out=out) is out and torch.equal(out, whole)

@pytest.mark.parametrize('method', METHODS)
def test_the_callers_model_is_left_alone(method):
    net = network().train()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    hooks = sum(len(m._forward_pre_hooks) for m in net.modules())
    net.sample(2, method=method)
    assert net.training and all(m.training for m in net.modules()) and all(p.requires_grad and p.grad is None for p in net.parameters())
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items()) and hooks == sum(len(m._forward_pre_hooks) for m in net.modules())
    net.log_prob(torch.zeros(1, 1, 8, 8, dtype=torch.float64)).sum().backward()
    assert all(p.grad is not None for p in net.parameters())

@pytest.mark.parametrize('change, error, says', [
    (dict(known=torch.zeros(2, 1, 8, 8)), ValueError, 'known and mask go together: mask is missing'),
    (dict(mask=torch.ones(8, 8, dtype=torch.bool)), ValueError, 'known and mask go together: known is missing'),
    (dict(known=torch.zeros(2, 1, 8, 8), mask=torch.ones(8, 8)), TypeError, 'mask must be a bool tensor, got torch.float32'),
    (dict(known=torch.zeros(2, 1, 8, 8), mask=torch.ones(8, 7, dtype=torch.bool)), ValueError, r'mask must be \(8, 8\) or \(2, 1, 8, 8\), got \(8, 7\)'),
    (dict(known=torch.zeros(2, 1, 8, 8), mask=torch.ones(3, 1, 8, 8, dtype=torch.bool)), ValueError, r'got \(3, 1, 8, 8\)'),
    (dict(known=torch.zeros(3, 1, 8, 8), mask=torch.ones(8, 8, dtype=torch.bool)), ValueError, 'known must hold one image, or 2 like uniforms, got 3'),
    (dict(known=torch.zeros(2, 1, 8, 7), mask=torch.ones(8, 8, dtype=torch.bool)), ValueError, r'known must be \(B, 1, 8, 8\)'),
    (dict(known=torch.full((2, 1, 8, 8), torch.nan), mask=torch.ones(8, 8, dtype=torch.bool)), ValueError, 'known holds NaN'),
    (dict(temperature=0), ValueError, 'temperature must be a positive number, got 0'), (dict(temperature=-1.), ValueError, 'temperature must be a positive number'),
    (dict(temperature=float('nan')), ValueError, 'temperature must be a positive number'), (dict(transform='magic'), ValueError, r"transform must be one of \['choice', 'icdf'\]"),
    (dict(method='magic'), ValueError, r"method must be one of \['naive', 'cached', 'jacobi', 'jacobi_rows'\], got 'magic'"),
    (dict(out=torch.zeros(2, 1, 8, 7)), ValueError, r'out must be \(2, 1, 8, 8\)'), (dict(out=torch.zeros(2, 1, 8, 8).double()), ValueError, 'out must be .* torch.float32')])
def test_faults_are_found_at_the_call(change, error, says):
    net = PixelCNNpp(**SMALL)
    with pytest.raises(error, match=says): draw(net, net.uniforms(2), **change)

def test_folded_networks_can_be_sampled_too():
    net = network()
    u = net.uniforms(2)
    assert torch.equal(folded(net).sample(uniforms=u), net.sample(uniforms=u))
