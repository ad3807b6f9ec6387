"The base class, the naive algorithm and `draw`: causality, equivalences, modes, faults."
import gc, inspect
import pytest, torch
from hypothesis import given, settings, strategies as st
from scipy import stats
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from distsmooth.conditional import StackedPixelCNNpp
from distsmooth.engine.incremental import fold_weight_norm
from distsmooth.masked import MaskedConv2d
from distsmooth.pixelcnn import PixelCNNpp
from distsmooth.autoregressive import METHODS, Autoregressive, PixelSampler, draw, naive, pixel_by_pixel
from distsmooth.checks import check_tensor
from distsmooth.engine.cached import CUDAGraphed, jacobi

class Tiny(Autoregressive):
    "One masked convolution, dropout, and for a conditional model a free convolution of the context"
    def __init__(self, channels=1, size=5, n_mix=2, head='continuous', context_channels=0, dropout=.5):
        super().__init__(channels, size, n_mix, head, context_channels)
        self.conv, self.drop = MaskedConv2d(channels, self.n_out, 3, 'A'), nn.Dropout(dropout)
        self.hint = nn.Conv2d(context_channels, self.n_out, 3, padding=1) if context_channels else None
        nn.init.normal_(self.conv.weight, std=.03)  # small: a wide pixel widens the next, and that must not run away
    def forward(self, x, context=None):
        h = self.drop(self.conv(x))
        return h if self.hint is None else h + self.hint(context)

class Free(Autoregressive):
    "No parameters: every pixel leans on its left neighbour"
    def forward(self, x, context=None):
        mean = .9*nn.functional.pad(x, (1, -1))
        return torch.cat([torch.zeros_like(x), mean, torch.full_like(x, -2)], 1)

def tiny(seed=0, **kw):
    torch.manual_seed(seed)
    return Tiny(**kw).double().eval()

def seeded(seed): return torch.Generator().manual_seed(seed)

CASES = [dict(channels=c, head=h, size=(3, 5), context_channels=k) for c in (1, 3) for h in ('continuous', 'discretized') for k in (0, 2)]
ids = lambda kw: '-'.join(map(str, kw.values()))

def inputs(model, n=3):
    context = torch.randn(n, model.context_channels, *model.size, dtype=torch.float64, generator=seeded(9)) if model.context_channels else None
    return model.uniforms(n, seeded(8)), context

@pytest.mark.parametrize('kw', CASES, ids=ids)
def test_naive_is_the_loop_over_pixels(kw):
    model = tiny(**kw); u, context = inputs(model)
    x = torch.zeros(3, model.channels, 3, 5, dtype=torch.float64)
    with torch.no_grad():
        for i in range(3):
            for j in range(5): x[:, :, i, j] = model.mixture(model(x, context)).from_uniforms(u)[:, :, i, j]
    torch.testing.assert_close(model.sample(context=context, uniforms=u), x)

@pytest.mark.parametrize('kw', CASES, ids=ids)
def test_log_prob_is_the_sum_over_pixels_of_what_was_said_while_drawing(kw):
    model = tiny(**kw); u, context = inputs(model)
    x, total, canvas = model.sample(context=context, uniforms=u), 0, torch.zeros(3, model.channels, 3, 5, dtype=torch.float64)
    for i in range(3):
        for j in range(5):
            total = total + model.mixture(model(canvas, context)).log_prob(x)[:, i, j]
            canvas[:, :, i, j] = x[:, :, i, j]
    torch.testing.assert_close(model.log_prob(x, context), total)

@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 14))
def test_a_uniform_moves_no_earlier_pixel(seed, pixel):
    model = tiny(seed, size=(3, 5)); u = model.uniforms(2, seeded(seed))
    changed = u.clone(); changed[:, :, pixel//5, pixel%5] = 1 - u[:, :, pixel//5, pixel%5]
    moved = (model.sample(uniforms=u) != model.sample(uniforms=changed)).flatten(1)
    assert not moved[:, :pixel].any() and moved[:, pixel].all()

@pytest.mark.parametrize('channels', [1, 3])
def test_one_component_cdf_returns_the_uniforms(channels):
    model = tiny(channels=channels, n_mix=1); u = model.uniforms(4, seeded(1))
    x = model.sample(uniforms=u)
    torch.testing.assert_close(model.mixture(model(x)).cdf(x), u[:, 1:], atol=1e-6, rtol=0)

@pytest.mark.parametrize('channels', [1, 3])
def test_log_prob_is_the_log_determinant_of_the_inverse_map(channels):
    model = tiny(channels=channels, size=(2, 3), n_mix=2)
    x = model.sample(uniforms=model.uniforms(1, seeded(2)))
    f = lambda v: model.mixture(model(v.view_as(x))).cdf(v.view_as(x)).flatten()
    J = torch.autograd.functional.jacobian(f, x.flatten())
    torch.testing.assert_close(J.det().abs().log(), model.log_prob(x)[0])

def test_own_samples_have_uniform_cdf_values():
    model = tiny(n_mix=3); x = model.sample(uniforms=model.uniforms(200, seeded(3)))
    v = model.mixture(model(x)).cdf(x).detach().flatten()
    assert stats.kstest(v, 'uniform').pvalue > 1e-3
    assert stats.kstest(model.mixture(model(.5*x)).cdf(.5*x).detach().flatten(), 'uniform').pvalue < 1e-3

def test_samples_of_a_batch_do_not_mix():
    model = tiny(); u = model.uniforms(4, seeded(4))
    torch.testing.assert_close(model.sample(uniforms=u)[[2, 0]], model.sample(uniforms=u[[2, 0]]))

def test_log_prob_has_a_gradient_in_x_and_in_every_parameter():
    model = tiny(context_channels=1); u, context = inputs(model)
    x = model.sample(context=context, uniforms=u).requires_grad_()
    model.log_prob(x, context).sum().backward()
    assert (x.grad != 0).all() and all(p.grad.abs().sum() > 0 for p in model.parameters())

def test_masses_of_one_pixel_sum_to_one():
    model = tiny(head='discretized', size=1, n_mix=1)
    levels = (torch.arange(256, dtype=torch.float64)/127.5 - 1)[:, None, None, None]
    torch.testing.assert_close(model.log_prob(levels).logsumexp(0), torch.tensor(0., dtype=torch.float64), atol=1e-9, rtol=0)

# uniforms and sample
def test_uniforms_repeat_and_fit_the_model():
    model = tiny(channels=3, size=(2, 4)); u = model.uniforms(6, seeded(0))
    assert u.shape == (6, 4, 2, 4) and u.dtype == torch.float64 and 0 <= u.min() and u.max() < 1
    assert torch.equal(u, model.uniforms(6, seeded(0))) and not torch.equal(u, model.uniforms(6, seeded(1)))

def test_a_model_without_parameters_can_be_sampled():
    x = Free(1, (2, 3), 1).sample(4)
    assert x.shape == (4, 1, 2, 3) and x.dtype == torch.float32

def test_n_may_come_from_uniforms_or_context():
    model = tiny(context_channels=1); u, context = inputs(model)
    assert len(model.sample(context=context)) == len(model.sample(context=context, uniforms=u)) == len(model.sample(3, context)) == 3
    assert len(tiny().sample(2)) == 2

def test_a_misspelt_option_is_named():
    with pytest.raises(TypeError, match="no option 'temprature': did you mean 'temperature'"): tiny().sample(2, temprature=.5)
    with pytest.raises(TypeError, match='shift'): tiny().sample(2, shift=1.)

def test_a_condition_that_the_model_is_not_made_for_is_named():
    for name, value in dict(context=torch.zeros(2, 1, 5, 5).double(), label=torch.tensor([0, 1]), sigma=.5).items():
        with pytest.raises(ValueError, match=f'{name} must be None'): tiny().sample(2, **{name: value})
        with pytest.raises(ValueError, match=f'{name} must be None'): tiny().dist(**{name: value})

def test_dist_is_a_distribution():
    model = tiny(context_channels=1); u, context = inputs(model); dist = model.dist(context)
    x = dist.from_uniforms(u)
    assert dist.event_shape == (1, 5, 5) and dist.batch_shape == (3,) and tiny().dist().batch_shape == ()
    assert torch.equal(x, model.sample(context=context, uniforms=u)) and torch.equal(dist.log_prob(x), model.log_prob(x, context))
    assert torch.equal(dist.sample(generator=seeded(8)), x) and tiny().dist().sample().shape == (1, 5, 5)
    assert torch.equal(tiny().dist().sample((4,), generator=seeded(1)), tiny().sample(4, generator=seeded(1)))
    v = x.clone().requires_grad_(); model.log_prob(v, context).sum().backward()
    torch.testing.assert_close(dist.score(x), v.grad)
    with torch.inference_mode(): torch.testing.assert_close(dist.score(x), v.grad)

def test_generator_makes_samples_repeatable():
    model = tiny()
    assert torch.equal(model.sample(2, generator=seeded(3)), model.sample(uniforms=model.uniforms(2, seeded(3))))

def test_sixteen_bit_models_are_drawn_in_float32():
    model = tiny().bfloat16(); u = model.uniforms(2, seeded(1))
    assert u.dtype == torch.float32 and model.sample(uniforms=u).dtype == torch.float32

def test_extreme_uniforms_give_finite_samples():
    for value in (0., 1.): assert Free(1, (3, 4), 1).sample(uniforms=torch.full((2, 2, 3, 4), value)).isfinite().all()

def test_progress_shows_rows(capsys):
    tiny().sample(1, progress=True)
    assert 'rows' in capsys.readouterr().err
    tiny().sample(1)
    assert capsys.readouterr().err == ''

# draw: a generator that leaves its caller alone
def test_draw_yields_every_row_of_one_canvas():
    model = tiny(size=(4, 3)); u = model.uniforms(2, seeded(6)); final = model.sample(uniforms=u)
    rows = []
    for i, x in draw(model, u):
        rows.append((i, x)); assert torch.equal(x[:, :, :i+1], final[:, :, :i+1]) and (x[:, :, i+1:] == 0).all()
    assert [i for i, _ in rows] == [0, 1, 2, 3] and all(x is rows[0][1] for _, x in rows)
    assert inspect.isgenerator(draw(model, u))

@pytest.mark.parametrize('outer', [True, False])
def test_gradient_mode_is_the_callers_between_rows(outer):
    model = tiny(); model.drop.register_forward_hook(lambda *_: inside.append(torch.is_grad_enabled())); inside = []
    with torch.set_grad_enabled(outer):
        for _, x in draw(model, model.uniforms(1)): assert torch.is_grad_enabled() == outer and not x.requires_grad
        assert torch.is_grad_enabled() == outer
    assert inside and not any(inside)

@pytest.mark.parametrize('stop', ['close', 'del', 'throw', 'end', 'error in the model'])
def test_modes_come_back_however_it_ends(stop):
    model = tiny().train(); model.conv.eval()
    seen, fails = [], []; model.drop.register_forward_hook(lambda m, *_: seen.append(m.training))
    model.drop.register_forward_hook(lambda *_: 1/0 if fails else None)
    modes = lambda: (model.training, model.drop.training, model.conv.training, torch.is_grad_enabled())
    before, rows = modes(), draw(model, model.uniforms(2))
    next(rows); assert modes() == before
    if stop == 'close': rows.close()
    if stop == 'del': del rows; gc.collect()
    if stop == 'end': list(rows)
    if stop == 'throw': pytest.raises(KeyError, rows.throw, KeyError('caller'))
    if stop == 'error in the model':
        fails.append(True); pytest.raises(ZeroDivisionError, next, rows)
    assert modes() == before == (True, True, False, True) and not any(seen)

def test_closing_draw_closes_the_algorithm(monkeypatch):
    closed = []
    def method(*args, **kw):
        try: yield from naive(*args, **kw)
        finally: closed.append(True)
    monkeypatch.setitem(METHODS, 'mine', method)
    model = tiny(); rows = draw(model, model.uniforms(1), method='mine'); next(rows); assert not closed
    rows.close(); assert closed == [True]
    assert torch.equal(model.sample(uniforms=(u := model.uniforms(2)), method='mine'), model.sample(uniforms=u))

def test_dropout_is_off_while_sampling():
    model = tiny().train(); u = model.uniforms(2, seeded(7))
    assert torch.equal(model.sample(uniforms=u), model.sample(uniforms=u)) and model.training
    assert torch.equal(model.sample(uniforms=u), model.eval().sample(uniforms=u)) and not model.training

def test_training_between_two_rows():
    model = tiny().train(); rows = draw(model, model.uniforms(1)); next(rows)
    model.log_prob(torch.zeros(1, 1, 5, 5, dtype=torch.float64)).sum().backward()
    assert model.conv.weight.grad is not None and len(list(rows)) == 4

@pytest.mark.parametrize('size', [(1, 1), (3, 4), 5])
def test_passes(size):
    model = tiny(size=size); calls = []
    model.register_forward_hook(lambda *_: calls.append(1)); model.sample(2, method='naive')
    assert len(calls) == model.size[0]*model.size[1]

# faults
def image(*shape): return torch.rand(*shape, dtype=torch.float64)

@pytest.mark.parametrize('x, error, says', [
    (image(2, 3, 5, 5), ValueError, r'x must be \(B, 1, 5, 5\), got \(2, 3, 5, 5\)'),
    (image(2, 1, 5, 6), ValueError, r'got \(2, 1, 5, 6\)'),
    (image(1, 5, 5), ValueError, r'got \(1, 5, 5\)'),
    (image(2, 1, 5, 5)*torch.nan, ValueError, 'x holds NaN'),
    (image(2, 1, 5, 5)/0, ValueError, 'infinite'),
    (torch.zeros(2, 1, 5, 5, dtype=torch.uint8), TypeError, 'x must be a float tensor, got torch.uint8'),
    ([[1.]], TypeError, 'got list'), (None, TypeError, 'got NoneType')])
def test_bad_images(x, error, says):
    with pytest.raises(error, match=says): tiny().log_prob(x)
    with pytest.raises(error, match=says): check_tensor(x, 'x', 'B', 1, 5, 5)

def test_values_outside_the_levels():
    x = image(2, 1, 5, 5); x[0, 0, 2, 2] = -1.5
    with pytest.raises(ValueError, match=r'x must lie in \[-1, 1\], found -1.5'): tiny(head='discretized').log_prob(x)
    assert tiny().log_prob(x).isfinite().all()

@pytest.mark.parametrize('u, error, says', [
    (image(2, 1, 5, 5), ValueError, r'uniforms must be \(B, 2, 5, 5\), got \(2, 1, 5, 5\)'),
    (image(2, 2, 5, 4), ValueError, r'got \(2, 2, 5, 4\)'),
    (image(2, 2, 5, 5)*torch.nan, ValueError, 'uniforms holds NaN'),
    (image(2, 2, 5, 5) + 1, ValueError, r'uniforms must lie in \[0, 1\]'),
    (-image(2, 2, 5, 5), ValueError, r'uniforms must lie in \[0, 1\]'),
    (image(2, 2, 5, 5).float(), ValueError, 'uniforms must be torch.float64 on cpu, got torch.float32'),
    ([.5], TypeError, 'uniforms must be a float tensor')])
def test_bad_uniforms(u, error, says):
    with pytest.raises(error, match=says): draw(tiny(), u)   # at the call, not at the first row
    with pytest.raises(error, match=says): tiny().sample(uniforms=u)

def test_bad_methods_counts_and_contexts():
    model, given, context = tiny(), tiny(context_channels=1), image(3, 1, 5, 5)
    with pytest.raises(ValueError, match=r"method must be one of \[.*'naive'.*\], got 'magic'"): model.sample(2, method='magic')
    with pytest.raises(ValueError, match='say how many samples'): model.sample()
    with pytest.raises(ValueError, match=r'uniforms must be \(5, 2, 5, 5\), got \(3, 2, 5, 5\)'): model.sample(5, uniforms=model.uniforms(3))
    for n in (0, -1, 2.5, '3'):
        with pytest.raises(ValueError, match='n must be a whole number of at least 1'): model.sample(n)
    with pytest.raises(ValueError, match='context must be None'): model.sample(3, context=context)
    with pytest.raises(ValueError, match='context must be None'): model.log_prob(context, context)
    with pytest.raises(ValueError, match='context must be given'): given.sample(3)
    with pytest.raises(ValueError, match='context must be given'): given.log_prob(context)
    with pytest.raises(ValueError, match=r'context must be \(2, 1, 5, 5\), got \(3'): given.log_prob(context[:2], context)
    with pytest.raises(ValueError, match=r'uniforms must be \(2, 2, 5, 5\), got \(3, 2, 5, 5\)'): given.sample(2, context, uniforms=given.uniforms(3))
    with pytest.raises(ValueError, match=r'context must be \(2, 1, 5, 5\), got \(3'): given.sample(2, context)
    with pytest.raises(ValueError, match=r'context must be \(B, 1, 5, 5\)'): given.sample(context=image(3, 2, 5, 5))
    with pytest.raises(ValueError, match='context holds NaN'): given.sample(context=context*torch.nan)

@pytest.mark.parametrize('kw, says', [(dict(head='softmax'), "head must be one of .*got 'softmax'"), (dict(channels=2), r'channels must be one of \[1, 3\], got 2'),
    (dict(size=0), 'size must be a whole number of at least 1, got 0'), (dict(size=(4, 4, 4)), r'size must be a side or \(H, W\)'),
    (dict(n_mix=0), 'n_mix must be'), (dict(context_channels=-1), 'context_channels must be')])
def test_bad_models(kw, says):
    with pytest.raises(ValueError, match=says): Tiny(**kw)

def test_the_base_class_is_abstract():
    with pytest.raises(NotImplementedError): Autoregressive(1, 4, 2)(torch.zeros(1, 1, 4, 4))

def test_a_model_comes_back_from_a_folder(tmp_path):
    model = tiny(size=(3, 4)); model.save_pretrained(tmp_path)
    back = Tiny.from_pretrained(tmp_path).double()
    u = model.uniforms(2, seeded(1))
    assert back.size == (3, 4)
    torch.testing.assert_close(back.sample(uniforms=u), model.float().double().sample(uniforms=u))

# four algorithms, one result

def calm(model, seed=0):
    "A random network whose samples stay small"
    torch.manual_seed(seed)
    model = model().double().eval()
    out = (model.net if isinstance(model, StackedPixelCNNpp) else model).out
    with torch.no_grad(): out.weight_g.mul_(.3)
    return model

def pixelcnn(channels=1, size=8, head='continuous', **kw): return calm(lambda: PixelCNNpp(channels, size, 4, 1, 2, head, **kw))
def stacked(channels=1, size=(8, 4), head='continuous', **kw): return calm(lambda: StackedPixelCNNpp(channels, size, 4, 1, 2, head, **kw))

MODELS = {**{f'tiny {ids(kw)}': lambda kw=kw: tiny(**kw) for kw in CASES},
    'plain': pixelcnn, 'oblong': lambda: pixelcnn(size=(12, 8)), 'colour': lambda: pixelcnn(3, (4, 8)), '8 bits': lambda: pixelcnn(size=(4, 8), head='discretized'),
    'labels': lambda: pixelcnn(size=(8, 4), n_classes=3), 'context': lambda: pixelcnn(size=(4, 12), context_channels=2), 'all': lambda: pixelcnn(3, (8, 4), 'discretized', context_channels=1, n_classes=3),
    'stacked': stacked, 'stacked colour': lambda: stacked(3, 4, 'discretized', n_classes=3)}

def conditions(model, n):
    cond = dict(context=torch.randn(n, model.context_channels, *model.size, dtype=torch.float64, generator=seeded(3))) if model.context_channels else {}
    n_classes = getattr(getattr(model, 'net', model), 'n_classes', 0)
    return cond | (dict(label=torch.arange(n) % n_classes) if n_classes else {})

def masks(model, n, kind, seed=0):
    "(n, 1, H, W) and pixels to keep"
    H, W = model.size
    known = torch.rand(n, model.channels, H, W, dtype=torch.float64, generator=seeded(seed))*2 - 1
    mask = {'random': torch.rand(n, 1, H, W, generator=seeded(seed+1)) < .4, 'all': torch.ones(n, 1, H, W).bool(), 'none': torch.zeros(n, 1, H, W).bool(),
            'leading rows': (torch.arange(H) < H - 3)[:, None].expand(n, 1, H, W), 'lower half': (torch.arange(H) >= H//2)[:, None].expand(n, 1, H, W)}[kind]
    return dict(known=known, mask=mask)

def assert_one_result(model, n, **how):
    u, cond = model.uniforms(n, seeded(4)), conditions(model, n)
    drawn = {method: model.sample(uniforms=u, method=method, **cond, **how) for method in ('naive', 'cached', 'jacobi', 'jacobi_rows')}
    for method, x in drawn.items(): torch.testing.assert_close(x, drawn['naive'], atol=1e-8, rtol=0, msg=lambda m: f'{method}: {m}')
    if 'mask' in how:
        mask = how['mask'].expand_as(x)
        for x in drawn.values(): assert torch.equal(x[mask], how['known'][mask])
    return drawn['naive']

def test_the_table_of_methods(): assert list(METHODS) == ['naive', 'cached', 'jacobi', 'jacobi_rows']

@pytest.mark.parametrize('name', MODELS)
def test_all_methods_agree(name):
    model = MODELS[name]()
    x, other = assert_one_result(model, 2), assert_one_result(model, 2, transform='icdf', temperature=.7)
    assert not torch.allclose(x, other)

@pytest.mark.parametrize('how', [dict(temperature=.7), dict(transform='icdf')], ids=ids)
@pytest.mark.parametrize('name', ['tiny 3-continuous-(3, 5)-2', 'plain', 'stacked colour'])
def test_all_methods_agree_in_every_combination(name, how): assert_one_result(MODELS[name](), 2, **how)

@pytest.mark.parametrize('name', ['labels', 'context'])
def test_all_methods_agree_for_one_image_and_for_more_than_a_lane(name):
    for n in (1, 17): assert_one_result(MODELS[name](), n)

@pytest.mark.parametrize('kind', ['random', 'all', 'none', 'leading rows', 'lower half'])
@pytest.mark.parametrize('name', ['tiny 3-continuous-(3, 5)-2', 'oblong', 'all', 'stacked'])
def test_all_methods_agree_on_completions(name, kind):
    model = MODELS[name]()
    x = assert_one_result(model, 2, **masks(model, 2, kind))
    if kind == 'none': torch.testing.assert_close(x, model.sample(uniforms=model.uniforms(2, seeded(4)), **conditions(model, 2)))
    if kind == 'random': assert_one_result(model, 2, **masks(model, 2, kind), transform='icdf', temperature=.7)

NETS = {}
def net(name): return NETS.setdefault(name, MODELS[name]())

@settings(max_examples=8, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(['random', 'leading rows']), st.sampled_from(['choice', 'icdf']), st.floats(.4, 1.5))
def test_cached_is_naive_whatever_is_known(seed, kind, transform, temperature):
    model = net('labels'); u, how = model.uniforms(2, seeded(seed)), dict(label=torch.tensor([0, 2]), transform=transform, temperature=temperature, **masks(model, 2, kind, seed))
    torch.testing.assert_close(model.sample(uniforms=u, **how), model.sample(uniforms=u, method='naive', **how), atol=1e-8, rtol=0)

def test_float32_draws_nearly_the_same_pixels():
    model = pixelcnn().float(); u = model.uniforms(4, seeded(4))
    drawn = [model.sample(uniforms=u, method=m) for m in METHODS]
    for x in drawn: assert x.dtype == torch.float32 and ((x - drawn[0]).abs() < 1e-4).float().mean() > .95

# completion
@pytest.mark.parametrize('method', ['naive', 'cached', 'jacobi', 'jacobi_rows'])
def test_leading_rows_are_not_drawn_again(method):
    model = pixelcnn(size=(12, 4)); how = masks(model, 2, 'leading rows')
    rows = [i for i, _ in draw(model, model.uniforms(2), method=method, **how)]
    if 'jacobi' not in method: assert rows == [8, 9, 10, 11]   # 9 rows are known, and the row_multiple is 4
    assert rows[-1] == 11

def test_one_known_image_and_one_mask_for_all():
    model = tiny(); u, how = model.uniforms(3, seeded(1)), masks(model, 1, 'random')
    x = model.sample(uniforms=u, **how)
    assert torch.equal(x, model.sample(uniforms=u, known=how['known'].expand(3, -1, -1, -1), mask=how['mask'][0, 0]))
    assert torch.equal(x, model.sample(uniforms=u, known=how['known'], mask=how['mask'].expand(3, -1, -1, -1)))

def test_what_is_known_last_has_no_say():
    model = tiny(); u, how = model.uniforms(2, seeded(1)), masks(model, 2, 'lower half')
    assert torch.equal(model.sample(uniforms=u, **how)[:, :, :2], model.sample(uniforms=u)[:, :, :2])

def test_gradients_of_what_is_known_stay_out():
    model = tiny(); how = masks(model, 2, 'random'); how['known'].requires_grad_()
    assert not model.sample(2, **how).requires_grad

# Jacobi
@pytest.mark.parametrize('method', ['jacobi', 'jacobi_rows'])
@pytest.mark.parametrize('name', ['plain', 'stacked colour', 'tiny 1-continuous-(3, 5)-0'])
def test_rows_reported_final_never_change(name, method):
    model = MODELS[name](); u, cond = model.uniforms(3, seeded(2)), conditions(model, 3)
    items = [(row, x.clone()) for row, x in draw(model.dist(**cond), u, method)]
    rows, final = [row for row, _ in items], items[-1][1]
    assert rows == sorted(rows) and rows[0] >= -1 and rows[-1] == model.size[0] - 1
    for row, x in items: assert torch.equal(x[:, :, :row+1], final[:, :, :row+1])
    strips = 1 if method == 'jacobi' else model.size[0]//model.row_multiple
    assert len(items) <= model.size[0]*model.size[1] + strips

class Snake(Autoregressive):
    "Every pixel leans on the one before it in raster order"
    def __init__(self, lean, size=(3, 4)): super().__init__(1, size, 1); self.lean = lean
    def forward(self, x, context=None):
        return torch.cat([torch.zeros_like(x), self.lean*nn.functional.pad(x.flatten(2), (1, -1)).view_as(x), torch.full_like(x, -2)], 1)

def test_sweeps_of_the_worst_and_of_the_best_case():
    for lean, n in ((.9, 13), (0., 2)): assert len(list(draw(Snake(lean), Snake(lean).uniforms(2), method='jacobi'))) == n

def test_strips_need_not_divide_the_image():
    class Row(Snake):
        def params(self, x, encoded, top=0): return Free.forward(self, x)   # looks along its row only
    model = Row(.9, (5, 3)); u = model.uniforms(2)
    x = torch.zeros(2, 1, 5, 3)
    rows = [row for row, _ in jacobi(model, {}, PixelSampler(model.mixture, u), x, rows=2)]
    assert rows[-1] == 4 and torch.equal(x, Free(1, (5, 3), 1).sample(uniforms=u, method='naive'))

@pytest.mark.parametrize('method', ['jacobi', 'jacobi_rows'])
def test_jacobi_ends_even_if_the_network_is_broken(method):
    model = pixelcnn()
    with torch.no_grad(): model.out.bias.fill_(torch.nan)
    assert len(list(draw(model, model.uniforms(1), method=method))) <= 64 + 2

# recordings
def test_recorded_runs_then_records_then_replays():
    log = []
    def record(work):
        log.append('record')
        return lambda: log.append('replay')
    f = CUDAGraphed(lambda *args: log.append(args), record)
    for args in ((0,), (0,), (0,), (1, 2), (0,), (1, 2)): f(*args)
    assert log == [(0,), 'record', 'replay', 'replay', (1, 2), 'replay', 'record', 'replay']

def test_what_cannot_be_recorded_runs_each_time():
    log, tries = [], []
    def refuse(work): tries.append(1); raise RuntimeError('no')
    f = CUDAGraphed(log.append, refuse)
    for _ in range(4): f(7)
    assert log == [7]*4 and tries == [1]
    def broken(work): raise KeyError('a bug')
    f = CUDAGraphed(log.append, broken); f(1)
    with pytest.raises(KeyError): f(1)

class Tape(TorchDispatchMode):
    "What a CUDA graph does, on the CPU: keeps the operations of `work` with the very tensors they read and wrote, and undoes what they did"
    def __init__(self, work):
        super().__init__()
        self.ops, undo = [], {}
        self.undo = undo
        with self: work()
        for t, before in reversed(list(undo.values())): t.copy_(before)
    def __torch_dispatch__(self, f, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if f is torch.ops.aten._local_scalar_dense.default: raise RuntimeError('the number would be frozen')
        written = [a.name for a in f._schema.arguments if a.alias_info and a.alias_info.is_write]
        named = dict(zip((a.name for a in f._schema.arguments), args)) | kwargs
        for name in written: self.undo[len(self.undo)] = named[name], named[name].clone()
        out = f(*args, **kwargs)
        view = any(r.alias_info for r in f._schema.returns)
        if written or not view: self.ops.append((f, args, kwargs, None if view else out))
        return out
    def __call__(self):
        for f, args, kwargs, out in self.ops:
            new = f(*args, **kwargs)
            if out is None: continue
            pairs = [(out, new)] if isinstance(out, torch.Tensor) else zip(out, new)
            for old, t in pairs: old.copy_(t)

def taped(model, encoded, sampler, x, start=0):
    tapes = []
    def record(work): tapes.append(Tape(work)); return tapes[-1]
    yield from pixel_by_pixel(model.decoder(encoded, x, start), sampler, x, start, lambda f, device: CUDAGraphed(f, record))
    TAPES.append(len(tapes))
TAPES = []

@pytest.mark.parametrize('name, kind, transform', [('oblong', None, 'choice'), ('all', None, 'choice'), ('all', 'random', 'icdf'),
    ('plain', 'random', 'icdf'), ('stacked', None, 'choice'), ('stacked', 'random', 'choice')])
def test_a_recorded_row_reads_and_writes_fixed_addresses_only(name, kind, transform, monkeypatch):
    monkeypatch.setitem(METHODS, 'taped', taped)
    model = {'plain': lambda: pixelcnn(size=(12, 4)), 'stacked': lambda: stacked(size=(8, 4))}.get(name, MODELS[name])()
    n = 3; u, cond = model.uniforms(n, seeded(5)), conditions(model, n)
    how = dict(transform=transform, temperature=.8, **cond, **(masks(model, n, kind) if kind else {}))
    x = model.sample(uniforms=u, method='taped', **how)
    assert TAPES.pop() == 3   # phases 0, 1 and 2
    torch.testing.assert_close(x, model.sample(uniforms=u, method='naive', **how), atol=1e-8, rtol=0)

def test_the_tape_would_notice(monkeypatch):
    "A row that reads a new tensor each time is not replayed right"
    class Moving:
        graph_key = 0
        def __init__(self, model, encoded, x): self.model, self.x = model, x
        def row(self, i): self.params = self.model(torch.cat([self.x[:, :, :i], torch.zeros_like(self.x[:, :, i:])], 2))[:, :, i:i+1]
        def pixel(self, j, line): return self.params[..., j:j+1]
    model = tiny(); u = model.uniforms(2, seeded(5)); rule = PixelSampler(model.mixture, u)
    def run(record):
        x = torch.zeros(2, 1, 5, 5, dtype=torch.float64)
        with torch.no_grad():
            for _ in pixel_by_pixel(Moving(model, {}, x), rule, x, 0, lambda f, device: CUDAGraphed(f, record) if record else f): pass
        return x
    eager, replayed = run(None), run(Tape)
    assert torch.equal(eager[:, :, 0], replayed[:, :, 0]) and not torch.allclose(eager, replayed)

# dtype, out, and what belongs to the caller
@pytest.mark.parametrize('method', ['naive', 'cached', 'jacobi', 'jacobi_rows'])
def test_sixteen_bits_in_the_network_and_float32_outside(method):
    model = pixelcnn(context_channels=1).float(); u, context, seen = model.uniforms(2, seeded(1)), torch.rand(2, 1, 8, 8), []
    hook = model.out.register_forward_hook(lambda m, i, out: seen.append(out.dtype))
    x = model.sample(context=context, uniforms=u, method=method, dtype=torch.bfloat16); hook.remove()
    assert set(seen) == (set() if method == 'cached' else {torch.bfloat16})
    assert x.dtype == torch.float32 and x.isfinite().all() and model.out.weight.dtype == torch.float32
    exact = model.sample(context=context, uniforms=u, method=method)
    assert not torch.equal(x, exact) and (x - exact).abs().median() < .1

@pytest.mark.parametrize('method', ['naive', 'cached', 'jacobi', 'jacobi_rows'])
def test_an_interrupted_run_keeps_its_rows_and_goes_on(method):
    model = pixelcnn(size=(12, 4)); u = model.uniforms(2, seeded(6)); whole = model.sample(uniforms=u, method=method)
    canvas, last = torch.full_like(whole, torch.nan), -1
    for last, x in draw(model, u, method=method, out=canvas):
        assert x is canvas
        if last >= 5: break
    assert torch.equal(canvas[:, :, :last+1], whole[:, :, :last+1])
    done = (torch.arange(12) <= last)[:, None].expand(12, 4)
    resumed = model.sample(uniforms=u, method=method, known=canvas, mask=done, out=canvas)
    assert resumed is canvas
    torch.testing.assert_close(resumed, whole, atol=1e-8, rtol=0)

def test_an_error_in_the_network_leaves_the_rows_that_are_done():
    model = tiny(); u = model.uniforms(2, seeded(6)); whole, canvas, calls = model.sample(uniforms=u), torch.zeros(2, 1, 5, 5, dtype=torch.float64), []
    def stop(*_):
        calls.append(1)
        if len(calls) == 13: raise KeyboardInterrupt
    model.drop.register_forward_hook(stop)
    with pytest.raises(KeyboardInterrupt): model.sample(uniforms=u, out=canvas)
    assert torch.equal(canvas[:, :, :2], whole[:, :, :2])

@pytest.mark.parametrize('method', ['naive', 'cached', 'jacobi', 'jacobi_rows'])
def test_the_callers_model_is_not_touched(method):
    model = pixelcnn(dropout=.5).train(); model.log_prob(torch.zeros(1, 1, 8, 8, dtype=torch.float64)).sum().backward()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    grads, modes, hooks = {k: p.grad.clone() for k, p in model.named_parameters()}, [m.training for m in model.modules()], [len(m._forward_pre_hooks) for m in model.modules()]
    rows = draw(model, model.uniforms(1), method=method); next(rows)
    for end in (lambda: None, rows.close):
        end()
        assert model.state_dict().keys() == state.keys() and all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
        assert all(torch.equal(p.grad, grads[k]) and p.requires_grad for k, p in model.named_parameters())
        assert [m.training for m in model.modules()] == modes and [len(m._forward_pre_hooks) for m in model.modules()] == hooks

# rule
def test_the_rule_of_a_part_is_the_part_of_the_rule():
    model = tiny(channels=3, size=(4, 6)); how = masks(model, 2, 'random'); rule = PixelSampler(model.mixture, model.uniforms(2, seeded(1)), **how, temperature=.6)
    params = torch.randn(2, model.n_out, 4, 6, dtype=torch.float64, generator=seeded(2))
    at = slice(1, 3), slice(2, 5)
    assert torch.equal(rule.part(*at)(params[..., at[0], at[1]]), rule(params)[..., at[0], at[1]])

def test_a_rule_draws_from_the_tempered_mixture():
    model = tiny(n_mix=3); params, u = torch.randn(2, model.n_out, 5, 5, dtype=torch.float64, generator=seeded(2)), model.uniforms(2, seeded(1))
    assert torch.equal(PixelSampler(model.mixture, u, temperature=.5)(params), model.mixture(params).tempered(.5).from_uniforms(u))
    x = PixelSampler(model.mixture, u, transform='icdf')(params)
    torch.testing.assert_close(model.mixture(params).cdf(x), u[:, 1:], atol=1e-9, rtol=0)

def test_icdf_is_continuous_in_the_temperature_and_choice_is_not():
    model = tiny(n_mix=3, seed=3); u = model.uniforms(16, seeded(1))
    at = lambda t, how: model.sample(uniforms=u, temperature=t, transform=how)
    change = {how: [(at(1 + step, how) - at(1, how)).abs().max() for step in (1e-2, 1e-4)] for how in ('choice', 'icdf')}
    assert change['icdf'][1] < .05*change['icdf'][0]
    jumps = [(at(1 + (k+1)/100, 'choice') - at(1 + k/100, 'choice')).abs().max() for k in range(8)]
    slides = [(at(1 + (k+1)/100, 'icdf') - at(1 + k/100, 'icdf')).abs().max() for k in range(8)]
    assert max(jumps) > 3*max(slides)

def test_bad_completions_temperatures_and_canvases():
    model = tiny(); u, known, mask = model.uniforms(3), image(3, 1, 5, 5), torch.zeros(5, 5, dtype=torch.bool)
    for error, says, how in [
        (ValueError, 'known and mask go together: mask is missing', dict(known=known)),
        (ValueError, 'known and mask go together: known is missing', dict(mask=mask)),
        (ValueError, r'known must be \(1 or 3, 1, 5, 5\), got \(3, 1, 5, 4\)', dict(known=known[..., :4], mask=mask)),
        (ValueError, 'known holds NaN', dict(known=known*torch.nan, mask=~mask)),
        (TypeError, 'known must be a float tensor, got torch.uint8', dict(known=known.byte(), mask=mask)),
        (ValueError, r'known must be \(1 or 3, 1, 5, 5\), got \(2, 1, 5, 5\)', dict(known=known[:2], mask=mask)),
        (TypeError, 'mask must be a tensor of bools, or of 0 and 1, got torch.float32', dict(known=known, mask=mask + .5)),
        (TypeError, 'mask must be a tensor of bools, or of 0 and 1, got list', dict(known=known, mask=[True])),
        (ValueError, r'mask must be \(1 or 3, 1, 5, 5\), got \(1, 1, 5, 4\)', dict(known=known, mask=mask[:, :4])),
        (ValueError, r'got \(2, 1, 5, 5\)', dict(known=known, mask=mask.expand(2, 1, 5, 5))),
        (ValueError, r"transform must be one of \['choice', 'icdf'\], got 'magic'", dict(transform='magic')),
        *[(ValueError, f'temperature must be a number above 0, got {t}', dict(temperature=t)) for t in (0, -1., float('nan'), float('inf'))],
        (ValueError, r'out must be \(3, 1, 5, 5\), got \(3, 1, 5, 4\)', dict(out=known[..., :4])),
        (ValueError, 'got torch.float32 on cpu', dict(out=known.float())),
        (TypeError, 'out must be a float tensor, got list', dict(out=[]))]:
        with pytest.raises(error, match=says): draw(model, u, **how)   # at the call
        with pytest.raises(error, match=says): model.sample(uniforms=u, **how)

# what else a sampler must not depend on
def test_jacobi_does_not_depend_on_the_first_guess():
    model = pixelcnn(); u = model.uniforms(2, seeded(1)); out = torch.empty(2, 1, 8, 8, dtype=torch.float64)
    rows = draw(model, u, method='jacobi', out=out); out.normal_()
    for _ in rows: pass
    torch.testing.assert_close(out, model.sample(uniforms=u, method='naive'), atol=1e-8, rtol=0)

def test_a_folded_network_can_be_sampled_too():
    model = pixelcnn(); u = model.uniforms(2, seeded(1))
    assert torch.equal(fold_weight_norm(model).sample(uniforms=u), model.sample(uniforms=u))

@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
@pytest.mark.parametrize('name', ['plain', 'oblong', 'all', 'stacked'])
def test_on_a_gpu(name):
    model = MODELS[name](); u, cond = model.uniforms(3, seeded(1)), conditions(model, 3)
    slow = model.sample(uniforms=u, method='naive', **cond)
    there = {k: v.cuda() for k, v in cond.items()}
    for method in METHODS:
        torch.testing.assert_close(model.cuda().sample(uniforms=u.cuda(), method=method, **there).cpu(), slow, atol=1e-8, rtol=0)

# noise levels

TOLD = {'plain': lambda: pixelcnn(size=(8, 4), sigma_range=(.1, 1.), n_classes=2), 'context': lambda: pixelcnn(3, (4, 4), sigma_range=(.1, 1.), context_channels=2),
        'stacked': lambda: stacked(size=(4, 4), sigma_range=(.1, 1.))}

def drawn_at(model, sigma, u, cond, methods=tuple(METHODS), **how):
    all_of = {m: model.sample(uniforms=u, method=m, sigma=sigma, **cond, **how) for m in methods}
    for m, x in all_of.items(): torch.testing.assert_close(x, all_of['naive'], atol=1e-8, rtol=0, msg=lambda text: f'{m}: {text}')
    return all_of['cached']

@pytest.mark.parametrize('name', TOLD)
def test_all_methods_agree_at_one_level_and_at_a_level_for_each_image(name):
    model, n = TOLD[name](), 3
    u, cond, sigma = model.uniforms(n, seeded(4)), conditions(model, n), torch.tensor([.1, .35, 1.], dtype=torch.float64)
    each, one = drawn_at(model, sigma, u, cond), drawn_at(model, .35, u, cond)
    same = model.sample(uniforms=u, sigma=torch.full((n,), .35, dtype=torch.float64), **cond)
    torch.testing.assert_close(one, same, atol=1e-10, rtol=0); torch.testing.assert_close(one[1], each[1], atol=1e-8, rtol=0)
    for i in (0, 2):
        assert (one[i] - each[i]).abs().max() > 1e-6
        alone = model.sample(uniforms=u[i:i+1], sigma=sigma[i].item(), **{k: v[i:i+1] for k, v in cond.items()})
        torch.testing.assert_close(alone[0], each[i], atol=1e-8, rtol=0)
    how = masks(model, n, 'leading rows' if model.size[0] == 8 else 'random')
    done = drawn_at(model, sigma, u, cond, ('naive', 'cached'), **how)
    assert torch.equal(done[how['mask'].expand_as(done)], how['known'][how['mask'].expand_as(done)])

def test_what_is_drawn_follows_its_level():
    "each drawn pixel is what its own mixture, at the level of its image, makes of its uniforms"
    for name, model in ((k, TOLD[k]()) for k in ('plain', 'stacked')):
        u, cond, sigma = model.uniforms(2, seeded(5)), conditions(model, 2), torch.tensor([.9, .12], dtype=torch.float64)
        x = model.sample(uniforms=u, sigma=sigma, **cond)
        again = lambda s: model.mixture(model(x, sigma=s, **{'context': None, **cond})).from_uniforms(u)
        with torch.no_grad(): torch.testing.assert_close(again(sigma), x, atol=1e-8, rtol=0); assert (again(sigma.flip(0)) - x).abs().amax((1, 2, 3)).min() > 1e-6
