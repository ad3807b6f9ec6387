"The base class, the naive algorithm and `draw`: causality, equivalences, modes, faults."
import gc, inspect
import pytest, torch
from hypothesis import given, settings, strategies as st
from scipy import stats
from torch import nn
from distsmooth.masked import MaskedConv2d
from distsmooth.sampling import METHODS, Autoregressive, check_images, draw, naive

class Tiny(Autoregressive):
    "One masked convolution, dropout, and for a conditional model a free convolution of the context"
    def __init__(self, channels=1, size=5, n_mix=2, head='continuous', context_channels=0, dropout=.5):
        super().__init__(channels, size, n_mix, head, context_channels)
        self.conv, self.drop = MaskedConv2d(channels, self.n_out, 3, 'A'), nn.Dropout(dropout)
        self.hint = nn.Conv2d(context_channels, self.n_out, 3, padding=1) if context_channels else None
        nn.init.normal_(self.conv.weight, std=.03)  # small: a wide pixel widens the next, and that must not run away
    def forward(self, x, context=None, shift=0.):
        h = self.drop(self.conv(x)) + shift
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
            for j in range(5): x[:, :, i, j] = model.mixture(model(x, context)).sample(u)[:, :, i, j]
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

def test_extra_arguments_reach_forward():
    model = tiny(); u = model.uniforms(2, seeded(5))
    assert not torch.equal(model.sample(uniforms=u), model.sample(uniforms=u, shift=1.))
    x = model.sample(uniforms=u)
    assert not torch.equal(model.log_prob(x), model.log_prob(x, shift=1.))

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
    model.register_forward_hook(lambda *_: calls.append(1)); model.sample(2)
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
    with pytest.raises(error, match=says): check_images(x, 1, (5, 5))

def test_values_outside_the_levels():
    x = image(2, 1, 5, 5); x[0, 0, 2, 2] = -1.5
    with pytest.raises(ValueError, match=r'x must lie in \[-1, 1\] for a discretized head, found 1.5'): tiny(head='discretized').log_prob(x)
    assert tiny().log_prob(x).isfinite().all()

@pytest.mark.parametrize('u, error, says', [
    (image(2, 1, 5, 5), ValueError, r'uniforms must be \(B, 2, 5, 5\), got \(2, 1, 5, 5\)'),
    (image(2, 2, 5, 4), ValueError, r'got \(2, 2, 5, 4\)'),
    (image(2, 2, 5, 5)*torch.nan, ValueError, 'uniforms holds NaN'),
    (image(2, 2, 5, 5) + 1, ValueError, r'uniforms must lie in \[0, 1\]'),
    (-image(2, 2, 5, 5), ValueError, r'uniforms must lie in \[0, 1\]'),
    (image(2, 2, 5, 5).float(), ValueError, 'uniforms must be torch.float64 on cpu like the model, got torch.float32'),
    ([.5], TypeError, 'uniforms must be a float tensor')])
def test_bad_uniforms(u, error, says):
    with pytest.raises(error, match=says): draw(tiny(), u)   # at the call, not at the first row
    with pytest.raises(error, match=says): tiny().sample(uniforms=u)

def test_bad_methods_counts_and_contexts():
    model, given, context = tiny(), tiny(context_channels=1), image(3, 1, 5, 5)
    with pytest.raises(ValueError, match=r"method must be one of \[.*'naive'.*\], got 'magic'"): model.sample(2, method='magic')
    with pytest.raises(ValueError, match='say how many samples'): model.sample()
    with pytest.raises(ValueError, match='n=5, but uniforms are for 3'): model.sample(5, uniforms=model.uniforms(3))
    for n in (0, -1, 2.5, '3'):
        with pytest.raises(ValueError, match='n must be a whole number of at least 1'): model.sample(n)
    with pytest.raises(ValueError, match='unconditional: context must be None'): model.sample(3, context=context)
    with pytest.raises(ValueError, match='unconditional: context must be None'): model.log_prob(context, context)
    with pytest.raises(ValueError, match='conditional: give it a context'): given.sample(3)
    with pytest.raises(ValueError, match='conditional: give it a context'): given.log_prob(context)
    with pytest.raises(ValueError, match='context holds 3 images, but 2'): given.log_prob(context[:2], context)
    with pytest.raises(ValueError, match='context holds 3 images, but 2'): given.sample(2, context)
    with pytest.raises(ValueError, match=r'context must be \(B, 1, 5, 5\)'): given.sample(context=image(3, 2, 5, 5))
    with pytest.raises(ValueError, match='context holds NaN'): given.sample(context=context*torch.nan)

@pytest.mark.parametrize('kw, says', [(dict(head='softmax'), "head must be one of .*got 'softmax'"), (dict(channels=2), 'channels must be 1 or 3'),
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
