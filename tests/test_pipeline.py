"""SmoothedModel: the same uniforms give the same samples, saving loses nothing, bounds are bounds, and misuse says what is wrong."""
import json
import math
import os
import pickletools
import shutil
import signal
from hashlib import sha256
import pytest
import torch
from torch.testing import assert_close
from forks import fork, posix, wait
from distsmooth.conditional import StackedPixelCNNpp
from distsmooth.data import load_dataset
from distsmooth.denoising import single_step
from distsmooth.made import MADE
from distsmooth.pipeline import PRETRAINED, SmoothedModel, load_parts, save_parts
from distsmooth.pixelcnn import PixelCNNpp
from distsmooth.smoothing import GaussianKernel, LaplaceKernel, UniformKernel

def made(**kwargs): return SmoothedModel(MADE(n_mix=2), MADE(n_mix=2, context_channels=1), **kwargs).eval()
def pixels(channels=1):
    net = dict(channels=channels, size=8, n_filters=4, n_resnet=1, n_mix=2)
    return SmoothedModel(PixelCNNpp(**net), PixelCNNpp(**net, head='discretized', context_channels=channels), GaussianKernel(0.3)).eval()
def stacked():
    net = dict(size=8, n_filters=4, n_resnet=1, n_mix=2)
    return SmoothedModel(PixelCNNpp(**net), StackedPixelCNNpp(**net), LaplaceKernel(0.2)).eval()
def levels(kernel=GaussianKernel(0.3), way='stacked', **kw):
    "Networks that are told the noise level, from 0.1 to 0.8"
    net = dict(size=4, n_filters=4, n_resnet=1, n_mix=2, sigma_range=(.1, .8), dropout=0.)
    return SmoothedModel(PixelCNNpp(**net), StackedPixelCNNpp(**net) if way == 'stacked' else PixelCNNpp(**net, head='discretized', context_channels=1), kernel, **kw).eval()
def with_raw(): return levels(LaplaceKernel(.2), 'encoder', raw=PixelCNNpp(1, 4, 4, 1, 3, 'discretized'))
MODELS = {'made': made, 'pixels': pixels, 'colours': lambda: pixels(3), 'stacked': stacked, 'levels': levels, 'with raw': with_raw}

@pytest.mark.parametrize('make', MODELS.values(), ids=MODELS)
def test_round_trip_is_exact(make, tmp_path):
    sm = make()
    sm.save_pretrained(tmp_path/'m')
    back = SmoothedModel.from_pretrained(tmp_path/'m')
    assert back.kernel == sm.kernel and not back.training
    assert_close(back.state_dict(), sm.state_dict(), rtol=0, atol=0)
    u = sm.uniforms(2, torch.Generator().manual_seed(0))
    assert_close(back.sample(uniforms=u), sm.sample(uniforms=u), rtol=0, atol=0)

def test_saving_again_replaces_and_leaves_no_rest(tmp_path):
    made().save_pretrained(tmp_path)
    sm = made()
    sm.save_pretrained(tmp_path)
    files = {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob('*') if p.is_file()} - {'README.md'}
    assert files == {'config.json', *(f'{part}/{f}' for part in ('smooth', 'reverse') for f in ('config.json', 'model.safetensors'))}
    assert_close(SmoothedModel.from_pretrained(tmp_path).state_dict(), sm.state_dict())

def test_a_failed_save_leaves_the_old_model(tmp_path, monkeypatch):
    old = made()
    old.save_pretrained(tmp_path)
    new = made()
    monkeypatch.setattr(new.reverse, 'save_pretrained', lambda *a, **k: (_ for _ in ()).throw(OSError('disk full')))
    with pytest.raises(OSError, match='disk full'): new.save_pretrained(tmp_path)
    assert_close(SmoothedModel.from_pretrained(tmp_path).state_dict(), old.state_dict())

def test_files_are_json_and_safetensors_never_pickle(tmp_path):
    made().save_pretrained(tmp_path)
    for path in tmp_path.rglob('*.safetensors'):
        with pytest.raises(Exception): list(pickletools.genops(path.read_bytes()))
    for path in tmp_path.rglob('*.json'): json.loads(path.read_text())

def test_parts_load_by_themselves(tmp_path):
    sm = pixels()
    sm.save_pretrained(tmp_path)
    assert_close(PixelCNNpp.from_pretrained(tmp_path/'reverse').state_dict(), sm.reverse.state_dict())

def test_stages_share_their_smoothed_samples():
    sm = pixels()
    u = sm.uniforms(3)
    x_noisy = sm.sample(uniforms=u, denoise=None)
    assert_close(sm.sample(uniforms=u, denoise='single_step'), single_step(sm.smooth, x_noisy, 0.3))
    assert_close(sm.sample(uniforms=u), sm.reverse.sample(context=x_noisy, uniforms=u[1]))

def test_seed_and_uniforms_are_the_same_thing():
    sm = made()
    u = sm.uniforms(4, torch.Generator().manual_seed(3))
    assert_close(sm.sample(4, generator=torch.Generator().manual_seed(3)), sm.sample(uniforms=u), rtol=0, atol=0)
    assert not torch.equal(sm.sample(4, generator=torch.Generator().manual_seed(4)), sm.sample(uniforms=u))

def test_more_draws_tighten_the_bound():
    "On average over many points; all below the integral, which a fine grid gives in two dimensions"
    sm = made(kernel=GaussianKernel(0.4))
    x = torch.randn(60, 1, 1, 2)
    elbo, iwae = sm.elbo(x, generator=torch.Generator().manual_seed(0)).mean(), sm.iwae(x, 50, torch.Generator().manual_seed(0)).mean()
    axis = torch.linspace(-12, 12, 400)
    grid = torch.cartesian_prod(axis, axis)[:, None, None]
    with torch.no_grad():
        log_p = sm.smooth.log_prob(grid)
        exact = torch.stack([(log_p + sm.reverse.log_prob(p.expand_as(grid), grid)).logsumexp(0) for p in x[:6, None]]) + 2*(axis[1]-axis[0]).log()
    assert elbo < iwae
    assert sm.iwae(x[:6], 2000, torch.Generator().manual_seed(0)).mean() < exact.mean() + 0.1
    assert sm.elbo(x[:6], generator=torch.Generator().manual_seed(0)).mean() < exact.mean()

BAD = {
    'unknown way back': (lambda: made().sample(2, denoise='magic'), r"denoise must be one of \['two_step', 'single_step', None\], got 'magic'"),
    'no reverse model': (lambda: SmoothedModel(MADE()).sample(2), 'needs a reverse model'),
    'step with other noise': (lambda: made(kernel=UniformKernel(.2)).sample(2, denoise='single_step'), 'Gaussian noise alone'),
    'other sigma': (lambda: made().sample(2, sigma=.3), 'sigma must be 0.5, the only noise level of this model, got 0.3'),
    'how many': (lambda: made().sample(), 'n or uniforms'),
    'unconditional reverse': (lambda: SmoothedModel(MADE(), MADE()), 'reverse must be conditional'),
    'other size': (lambda: SmoothedModel(MADE(), MADE((1, 3), context_channels=1)), r'reverse must be conditional and draw images \(1, 1, 2\) like smooth, got \(1, 1, 3\)'),
    'no draws': (lambda: made().iwae(torch.zeros(1, 1, 1, 2), 0), 'k must be a whole number of at least 1, got 0'),
    'wrong size': (lambda: made().elbo(torch.zeros(1, 1, 1, 3)), r'must be \(\w, 1, 1, 2\), got \(1, 1, 1, 3\)'),
    'not a number': (lambda: made().denoise(torch.full((1, 1, 1, 2), torch.nan), 'single_step'), 'x_noisy holds NaN'),
    'method': (lambda: made().sample(2, method='magic'), 'method must be one of'),
}
@pytest.mark.parametrize('call, says', BAD.values(), ids=BAD)
def test_bad_input(call, says):
    with pytest.raises(ValueError, match=says): call()

def test_nothing_to_load(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"name must be one of \['cifar10-16', 'digits'\]"): SmoothedModel.from_pretrained('cats')
    with pytest.raises(FileNotFoundError, match='no config.json'): SmoothedModel.from_pretrained(tmp_path)
    made().save_pretrained(tmp_path)
    os.remove(tmp_path/'smooth'/'model.safetensors')
    with pytest.raises(FileNotFoundError): SmoothedModel.from_pretrained(tmp_path)

def test_the_box():
    "Small files, and a smooth model whose joint score denoises real digits better than the local one, and both better than nothing"
    assert all(p.stat().st_size < 5e6 for p in (PRETRAINED/'digits').rglob('*.*'))
    sm = SmoothedModel.from_pretrained('digits')
    x = load_dataset('digits', 'test')[:20][0]
    x_noisy = sm.kernel.sample(x, torch.Generator().manual_seed(0))
    error = {score: (single_step(sm.smooth, x_noisy, 0.5, score) - x).square().mean() for score in ('joint', 'local')}
    assert error['joint'] < error['local'] < 0.3*(x_noisy - x).square().mean()
    bits = -sm.elbo(x)/784/torch.tensor(2.).log()
    assert 0.5 < bits.mean() < 2

SIZE = 8, 8

@pytest.mark.parametrize('shape', ['image', 'one for all', 'one each'])
@pytest.mark.parametrize('make', [pixels, stacked])
def test_complete_keeps_what_is_known(make, shape):
    sm, x = make(), torch.rand(3, 1, *SIZE)*2 - 1
    mask = torch.rand(*SIZE) < .5
    given = {'image': mask, 'one for all': mask[None, None], 'one each': torch.rand(3, 1, *SIZE) < .5}[shape]
    done = sm.complete(x, given, generator=torch.Generator().manual_seed(0))
    kept = given.expand(3, 1, *SIZE)
    assert torch.equal(done[kept], x[kept]) and (done[~kept] != x[~kept]).all()
    assert torch.equal(done, sm.complete(x, given, generator=torch.Generator().manual_seed(0)))
    assert not torch.equal(done, sm.complete(x, given, generator=torch.Generator().manual_seed(1)))

def test_complete_goes_by_way_of_the_smoothed_images():
    "By hand: the same noise on what is known, then both networks"
    sm, x, mask = pixels(), torch.rand(2, 1, *SIZE)*2 - 1, torch.zeros(*SIZE, dtype=torch.bool)
    mask[0] = True
    u = sm.uniforms(2, torch.Generator().manual_seed(1))
    x_noisy = sm.smooth.sample(uniforms=u[0], known=sm.kernel.sample(x, torch.Generator().manual_seed(2)), mask=mask)
    by_hand = sm.reverse.sample(context=x_noisy, uniforms=u[1], known=x, mask=mask)
    assert torch.equal(sm.complete(x, mask, u, torch.Generator().manual_seed(2)), by_hand)

def test_knobs_reach_both_networks():
    sm = pixels()
    u = sm.uniforms(4, torch.Generator().manual_seed(0))
    plain, cool = sm.sample(uniforms=u), sm.sample(uniforms=u, temperature=.3, transform='icdf')
    assert (plain != cool).any()
    assert_close(sm.sample(uniforms=u, method='naive'), plain)
    with pytest.raises(ValueError, match='temperature must be a number above 0, got 0'): sm.sample(2, temperature=0)
    with pytest.raises(ValueError, match='two_step'): SmoothedModel(sm.smooth).complete(torch.zeros(1, 1, *SIZE), torch.zeros(*SIZE, dtype=torch.bool))

# noise levels

EACH = torch.tensor([.15, .8, .3], dtype=torch.float64)

@pytest.mark.parametrize('sigma, way', [(.6, 'stacked'), (EACH, 'stacked'), (EACH, 'encoder')], ids=['one', 'each', 'each, encoder'])
def test_both_networks_are_told(sigma, way):
    sm = levels(way=way).double()
    u = sm.uniforms(3, torch.Generator().manual_seed(0))
    x_noisy = sm.smooth.sample(uniforms=u[0], sigma=sigma)
    clean = sm.reverse.sample(context=x_noisy, uniforms=u[1], sigma=sigma)
    assert torch.equal(sm.sample(uniforms=u, sigma=sigma, denoise=None), x_noisy) and torch.equal(sm.sample(uniforms=u, sigma=sigma), clean)
    assert torch.equal(sm.denoise(x_noisy, uniforms=u[1], sigma=sigma), clean)
    step = single_step(sm.smooth, x_noisy, sigma)
    assert torch.equal(sm.sample(uniforms=u, sigma=sigma, denoise='single_step'), step) and torch.equal(sm.denoise(x_noisy, 'single_step', sigma=sigma), step)
    for how in ('two_step', 'single_step', None):      # each of the two is told, and the default is another level
        assert ((sm.sample(uniforms=u, denoise=how) - sm.sample(uniforms=u, sigma=sigma, denoise=how)).abs().flatten(1).amax(1) > 1e-9).tolist() == ([True, True, False] if sigma is EACH else [True]*3)
    assert not torch.equal(sm.reverse.sample(context=x_noisy, uniforms=u[1], sigma=.3)[0], clean[0])
    assert torch.equal(sm.sample(3, sigma=sigma, generator=torch.Generator().manual_seed(0)), clean)

def test_the_default_level_is_the_kernels():
    sm, x, mask = levels().double(), torch.rand(3, 1, 4, 4, dtype=torch.float64)*2 - 1, torch.eye(4).bool()
    u, seed = sm.uniforms(3, torch.Generator().manual_seed(0)), lambda: torch.Generator().manual_seed(1)
    for call in (lambda **kw: sm.sample(uniforms=u, **kw), lambda **kw: sm.denoise(x, uniforms=u[1], **kw), lambda **kw: sm.denoise(x, 'single_step', **kw),
                 lambda **kw: sm.complete(x, mask, u, seed(), **kw), lambda **kw: sm.iwae(x, 2, seed(), **kw)):
        assert torch.equal(call(), call(sigma=.3)) and not torch.equal(call(), call(sigma=.31))
    assert sm.check_sigma() == .3 and sm.check_sigma(.5) == .5 and sm.check_sigma(EACH) is EACH

@pytest.mark.parametrize('kernel', [GaussianKernel, LaplaceKernel])
def test_bound_and_completion_at_a_level_by_hand(kernel):
    sm, x, s = levels(kernel(.3)).double(), torch.rand(2, 1, 4, 4, dtype=torch.float64)*2 - 1, .55
    gen, terms = torch.Generator().manual_seed(1), []
    for _ in range(3):
        x_noisy = kernel(s).sample(x, gen)
        with torch.no_grad(): terms.append(sm.smooth.log_prob(x_noisy, sigma=s) + sm.reverse.log_prob(x, x_noisy, sigma=s) - kernel(s).log_prob(x_noisy, x))
    assert_close(sm.iwae(x, 3, torch.Generator().manual_seed(1), sigma=s), torch.stack(terms).exp().mean(0).log(), rtol=1e-9, atol=1e-9)
    mask, u = torch.rand(4, 4) < .5, sm.uniforms(2, torch.Generator().manual_seed(2))
    x_noisy = sm.smooth.sample(uniforms=u[0], known=kernel(s).sample(x, torch.Generator().manual_seed(3)), mask=mask, sigma=s)
    by_hand = sm.reverse.sample(context=x_noisy, uniforms=u[1], known=x, mask=mask, sigma=s)
    assert torch.equal(sm.complete(x, mask, u, torch.Generator().manual_seed(3), sigma=s), by_hand) and torch.equal(by_hand[..., mask], x[..., mask])

ZEROS, OUTSIDE = torch.zeros(2, 1, 4, 4), r'sigma must (lie in \[0.1, 0.8\]|be a number above 0), got '
ONE = 'sigma must be (0.3, the only noise level of this model|a number above 0), got '
CALLS = {'sample': lambda sm, s: sm.sample(2, sigma=s), 'smoothed': lambda sm, s: sm.sample(2, denoise=None, sigma=s), 'step': lambda sm, s: sm.denoise(ZEROS, 'single_step', sigma=s), 'nothing': lambda sm, s: sm.denoise(ZEROS, None, sigma=s),
         'denoise': lambda sm, s: sm.denoise(ZEROS, sigma=s), 'complete': lambda sm, s: sm.complete(ZEROS, torch.eye(4).bool(), sigma=s), 'elbo': lambda sm, s: sm.elbo(ZEROS, sigma=s), 'iwae': lambda sm, s: sm.iwae(ZEROS, 2, sigma=s), 'check_sigma': lambda sm, s: sm.check_sigma(s)}
@pytest.mark.parametrize('call', CALLS)
def test_other_levels_are_refused(call):
    told = levels()
    for s, got in ((.05, .05), (.81, .81), (-.3, -.3), (0, 0), (float('nan'), 'nan'), (torch.tensor([.3, .875]), 0.875), (torch.tensor([float('nan'), .3]), 'nan')):
        with pytest.raises(ValueError, match=f'{OUTSIDE}{got}'): CALLS[call](told, s)
    net = dict(size=4, n_filters=4, n_resnet=1, n_mix=2)
    single = SmoothedModel(PixelCNNpp(**net), StackedPixelCNNpp(**net), GaussianKernel(.3)).eval()
    for s, got in ((.31, 0.31), (.29, 0.29), (-.3, -.3), (float('nan'), 'nan'), (torch.tensor([.3, .375]), 0.375)):
        with pytest.raises(ValueError, match=f'{ONE}{got}'): CALLS[call](single, s)
    CALLS[call](single, .3)

@pytest.mark.parametrize('call', ['complete', 'elbo', 'iwae'])
def test_the_way_round_has_one_level(call):
    "It needs a kernel, and a kernel has one"
    for s in (EACH[:2], torch.tensor(.3)):
        with pytest.raises(ValueError, match=r'sigma must be a number above 0, got tensor'): CALLS[call](levels(), s)

def test_a_number_is_as_exact_as_a_float64_tensor():
    "0.6 is not a float32"
    sm, x_noisy, s = levels().double(), torch.rand(2, 1, 4, 4, dtype=torch.float64), torch.tensor(.6, dtype=torch.float64)
    u = sm.uniforms(2, torch.Generator().manual_seed(0))
    for call in (lambda s: sm.sample(uniforms=u, sigma=s), lambda s: sm.denoise(x_noisy, uniforms=u[1], sigma=s), lambda s: sm.denoise(x_noisy, 'single_step', sigma=s)):
        assert torch.equal(call(.6), call(s)) and not torch.equal(call(.6), call(s.float()))
        assert_close(call(.6), call(s.expand(2)), rtol=0, atol=1e-11)

def test_a_single_level_takes_its_own_level_in_any_form():
    sm = pixels()
    u = sm.uniforms(2, torch.Generator().manual_seed(0))
    for s in (.3, torch.tensor(.3), torch.full((2,), .3)): assert torch.equal(sm.sample(uniforms=u, sigma=s), sm.sample(uniforms=u))

def test_parts_that_do_not_fit_together():
    net = dict(size=4, n_filters=4, n_resnet=1, n_mix=2)
    P, S = (lambda **kw: PixelCNNpp(**net, **kw)), (lambda **kw: StackedPixelCNNpp(**net, **kw))
    for smooth, reverse in (((.1, 1.), (.1, .9)), ((.1, 1.), None), (None, (.1, 1.))):
        with pytest.raises(ValueError, match='reverse must have the sigma_range of smooth, '): SmoothedModel(P(sigma_range=smooth), S(sigma_range=reverse))
    for sigma in (.39, .81):
        with pytest.raises(ValueError, match=r'sigma must lie in \[0.4, 0.8\], got '): SmoothedModel(P(sigma_range=(.4, .8)), S(sigma_range=(.4, .8)), GaussianKernel(sigma))
    for sigma in (.4, .8): SmoothedModel(P(sigma_range=(.4, .8)), S(sigma_range=[.4, .8]), GaussianKernel(sigma))
    with pytest.raises(ValueError, match=r'sigma must lie in \[0.6, 1\], got 0.5'): SmoothedModel(P(sigma_range=(.6, 1.)))   # the kernel that is left out is one of 0.5

def test_levels_and_raw_come_back(tmp_path):
    sm = with_raw()
    sm.save_pretrained(tmp_path)
    back = SmoothedModel.from_pretrained(tmp_path)
    assert back.smooth.sigma_range == back.reverse.sigma_range == (.1, .8) and back.raw.sigma_range is None and 'sigma_range=(0.1, 0.8)' in repr(back) and back.kernel == LaplaceKernel(.2)
    assert type(back.raw) is PixelCNNpp and (back.raw.head, back.raw.n_mix, back.raw.training) == ('discretized', 3, False) and torch.equal(back.raw(ZEROS), sm.raw(ZEROS))
    u = sm.uniforms(3, torch.Generator().manual_seed(0))
    assert torch.equal(back.sample(uniforms=u, sigma=EACH), sm.sample(uniforms=u, sigma=EACH))
    parts = load_parts(tmp_path)
    assert parts.keys() == {'kernel', 'smooth', 'reverse', 'raw'} and not any(parts[k].training for k in ('smooth', 'reverse', 'raw'))
    assert SmoothedModel(made().smooth).raw is None

@pytest.mark.parametrize('part', ['smooth', 'reverse', 'raw'])
def test_one_part(part, tmp_path):
    sm = with_raw()
    net = getattr(sm, part)
    save_parts(tmp_path/'new'/'one', sm.kernel, **{part: net.train()})
    files = {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob('*') if p.is_file()}
    assert files == {f'new/one/{f}' for f in ('config.json', f'{part}/config.json', f'{part}/model.safetensors')}
    got = load_parts(str(tmp_path/'new'/'one'))
    assert got.keys() == {'kernel', part} and got['kernel'] == LaplaceKernel(.2) and type(got[part]) is type(net) and not got[part].training
    assert_close(got[part].state_dict(), net.state_dict(), rtol=0, atol=0); assert got[part].sigma_range == net.sigma_range
    if part == 'smooth':
        alone = SmoothedModel.from_pretrained(tmp_path/'new'/'one')
        assert alone.reverse is None and alone.raw is None and alone.sample(2, denoise=None).shape == (2, 1, 4, 4)
        with pytest.raises(ValueError, match='needs a reverse model'): alone.sample(2)
    else:
        with pytest.raises(ValueError, match=rf"holds only \['{part}'\]: a SmoothedModel needs smooth"): SmoothedModel.from_pretrained(tmp_path/'new'/'one')

def test_parts_saved_together_are_the_model(tmp_path):
    sm = levels()
    save_parts(tmp_path/'parts', sm.kernel, smooth=sm.smooth, reverse=sm.reverse)
    sm.save_pretrained(tmp_path/'whole')
    for f in ('config.json', *(f'{p}/{f}' for p in ('smooth', 'reverse') for f in ('config.json', 'model.safetensors'))):
        assert (tmp_path/'parts'/f).read_bytes() == (tmp_path/'whole'/f).read_bytes()
    assert torch.equal(SmoothedModel.from_pretrained(tmp_path/'parts').smooth(ZEROS, sigma=.2), sm.smooth(ZEROS, sigma=.2))

def test_a_failed_save_of_parts_writes_nothing(tmp_path, monkeypatch):
    old, new = levels(), levels()
    save_parts(tmp_path/'m', old.kernel, smooth=old.smooth)
    before = {p: p.read_bytes() for p in tmp_path.rglob('*') if p.is_file()}
    monkeypatch.setattr(new.reverse, 'save_pretrained', lambda *a, **k: (_ for _ in ()).throw(OSError('disk full')))
    with pytest.raises(OSError, match='disk full'): save_parts(tmp_path/'m', GaussianKernel(.2), smooth=new.smooth, reverse=new.reverse)
    assert {p: p.read_bytes() for p in tmp_path.rglob('*') if p.is_file()} == before

# killed while saving

def filled(value):
    "A small model whose weights are all one number, which its kernel has too"
    sm = SmoothedModel(MADE(n_mix=1, n_hidden=(2,)), MADE(n_mix=1, n_hidden=(2,), context_channels=1), GaussianKernel(value))
    with torch.no_grad():
        for p in sm.parameters(): p.fill_(value)
    return sm

def value_of(folder):
    "The one number that all of a saved model agrees on"
    parts = load_parts(folder)
    values = {parts['kernel'].sigma, *(v for part in ('smooth', 'reverse') for p in parts[part].parameters() for v in p.unique().tolist())}
    assert len(values) == 1, f'parts of several models: {values}'
    return values.pop()

SAVES = {'save_pretrained': lambda sm, folder: sm.save_pretrained(folder), 'save_parts': lambda sm, folder: save_parts(folder, sm.kernel, smooth=sm.smooth, reverse=sm.reverse)}

@posix
@pytest.mark.parametrize('place', ['plain', 'link'])
@pytest.mark.parametrize('how', SAVES)
def test_killed_at_any_rename_the_model_is_the_old_or_the_new_one(how, place, tmp_path):
    (tmp_path/'real').mkdir(); (tmp_path/'parent').mkdir()
    folder = tmp_path/'parent'/'m'
    if place == 'link': folder.symlink_to(tmp_path/'real')
    SAVES[how](filled(1.), folder)
    files = sorted(p.relative_to(folder).as_posix() for p in folder.rglob('*'))
    def work(value, call, after):
        count, replace = 0, os.replace
        def counted(a, b):
            nonlocal count
            count += 1
            if count == call and not after: os.kill(os.getpid(), signal.SIGKILL)
            replace(a, b)
            if count == call: os.kill(os.getpid(), signal.SIGKILL)
        os.replace = counted
        SAVES[how](filled(value), folder)
    value, seen = 1., []
    for call in range(1, 100):
        for after in (False, True):
            value += 1
            old, code = value_of(folder), wait(fork(lambda: work(value, call, after)))
            assert code in (0, -signal.SIGKILL) and value_of(folder) in ((old, value) if code else (value,))
            seen.append((code != 0, value_of(folder) == old))
            assert os.listdir(folder.parent) == ['m'], 'nothing is written beside the folder'
        if not any(killed for killed, _ in seen[-2:]): break
    assert {(True, True), (True, False), (False, False)} == set(seen) and len(seen) > 10
    SAVES[how](filled(value), folder)
    assert value_of(folder) == value and sorted(p.relative_to(folder).as_posix() for p in folder.rglob('*')) == files

def test_weights_that_config_does_not_name_are_refused(tmp_path):
    for name, value in (('a', 1.), ('b', 2.)): filled(value).save_pretrained(tmp_path/name)
    config = json.loads((tmp_path/'a'/'config.json').read_text())
    assert config['sha256']['smooth/model.safetensors'] == sha256((tmp_path/'a'/'smooth'/'model.safetensors').read_bytes()).hexdigest()
    assert config['sha256'].keys() == {f'{p}/{f}' for p in ('smooth', 'reverse') for f in ('config.json', 'model.safetensors')}
    shutil.copy(tmp_path/'b'/'smooth'/'model.safetensors', tmp_path/'a'/'smooth'/'model.safetensors')
    with pytest.raises(ValueError, match='smooth/model.safetensors is damaged or was changed.*Save the model again, or take its line out'): load_parts(tmp_path/'a')
    del config['sha256']['smooth/model.safetensors']
    (tmp_path/'a'/'config.json').write_text(json.dumps(config))
    parts = load_parts(tmp_path/'a')
    assert parts['smooth'].state_dict().popitem()[1].unique().item() == 2 and parts['reverse'].state_dict().popitem()[1].unique().item() == 1

@posix
def test_a_model_saved_without_check_sums_loads_and_is_replaced(tmp_path):
    filled(1.).save_pretrained(tmp_path)
    config = json.loads((tmp_path/'config.json').read_text())
    del config['sha256']
    def old(): (tmp_path/'config.json').write_text(json.dumps(config))
    old()
    assert value_of(tmp_path) == 1
    def work():
        replace = os.replace
        def killing(a, b): replace(a, b) if 'config.json' != os.path.basename(b) else os.kill(os.getpid(), signal.SIGKILL)
        os.replace = killing
        filled(2.).save_pretrained(tmp_path)
    assert wait(fork(work)) == -signal.SIGKILL and value_of(tmp_path) == 1
    filled(3.).save_pretrained(tmp_path)
    assert value_of(tmp_path) == 3

def test_a_model_card_is_kept_and_a_missing_one_is_written(tmp_path):
    filled(1.).save_pretrained(tmp_path)
    assert 'model_hub_mixin' in (tmp_path/'README.md').read_text()
    (tmp_path/'README.md').write_text('mine')
    filled(2.).save_pretrained(tmp_path)
    assert (tmp_path/'README.md').read_text() == 'mine' and value_of(tmp_path) == 2

def test_publishing_takes_the_name_of_the_folder(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(SmoothedModel, 'push_to_hub', lambda self, repo_id, **kw: calls.append(repo_id))
    filled(1.).save_pretrained(tmp_path/'my-digits', push_to_hub=True)
    filled(1.).save_pretrained(tmp_path/'my-digits', push_to_hub=True, repo_id='me/other')
    assert calls == ['my-digits', 'me/other']

# labels, generators, what is not known

def labelled(smooth, reverse, way='stacked'):
    "Networks made for so many labels, 0 for none"
    torch.manual_seed(0)
    net = dict(size=4, n_filters=4, n_resnet=1, n_mix=2, dropout=0.)
    back = StackedPixelCNNpp(**net, n_classes=reverse) if way == 'stacked' else PixelCNNpp(**net, context_channels=1, n_classes=reverse)
    return SmoothedModel(PixelCNNpp(**net, n_classes=smooth), back, GaussianKernel(.3)).double().eval()

def seeded(seed=0): return torch.Generator().manual_seed(seed)

@pytest.mark.parametrize('way', ['stacked', 'encoder'])
@pytest.mark.parametrize('smooth, reverse', [(3, 3), (3, 0), (0, 3)])
def test_labels_reach_the_networks_made_for_them(smooth, reverse, way):
    "By hand, network by network; and another label is another result just where one of them hears it"
    sm, x, mask, each = labelled(smooth, reverse, way), torch.rand(2, 1, 4, 4, dtype=torch.float64)*2 - 1, torch.eye(4).bool(), torch.tensor([2, 0])
    u, s = sm.uniforms(2, seeded()), .3
    one, two = (dict(label=each) if n else {} for n in (smooth, reverse))
    x_noisy = sm.smooth.sample(uniforms=u[0], **one)
    clean, step = sm.reverse.sample(context=x_noisy, uniforms=u[1], **two), single_step(sm.smooth, x_noisy, s, **one)
    known = sm.smooth.sample(uniforms=u[0], known=sm.kernel.sample(x, seeded(1)), mask=mask, **one)
    gen, terms = seeded(2), []
    for _ in range(3):
        z = sm.kernel.sample(x, gen)
        with torch.no_grad(): terms.append(sm.smooth.log_prob(z, **one) + sm.reverse.log_prob(x, z, **two) - sm.kernel.log_prob(z, x))
    calls = {'smoothed': (lambda k: sm.sample(uniforms=u, denoise=None, label=k), x_noisy, smooth), 'sample': (lambda k: sm.sample(uniforms=u, label=k), clean, 1),
             'sample, step': (lambda k: sm.sample(uniforms=u, denoise='single_step', label=k), step, smooth), 'denoise': (lambda k: sm.denoise(x_noisy, uniforms=u[1], label=k), clean, reverse),
             'step': (lambda k: sm.denoise(x_noisy, 'single_step', label=k), step, smooth), 'elbo': (lambda k: sm.elbo(x, generator=seeded(2), label=k), terms[0], 1),
             'complete': (lambda k: sm.complete(x, mask, u, seeded(1), label=k), sm.reverse.sample(context=known, uniforms=u[1], known=x, mask=mask, **two), 1),
             'iwae': (lambda k: sm.iwae(x, 3, seeded(2), label=k), torch.stack(terms).logsumexp(0) - math.log(3), 1)}
    for name, (call, want, heard) in calls.items():
        assert_close(call(each), want, rtol=1e-12, atol=1e-12, msg=name)
        assert (not torch.equal(call(torch.tensor([2, 1]))[1], want[1])) == bool(heard), name
        assert_close(call(torch.tensor([2, 1]))[0], want[0], rtol=1e-12, atol=1e-12, msg=name)
        for form in (2, torch.tensor(2)): assert_close(call(form), call(torch.tensor([2, 2])), rtol=1e-9, atol=1e-9, msg=name)
        if heard:
            for bad, says in ((3, r'label must be a whole number in \[0, 2\], got 3'), (torch.tensor([0, 1, 2]), r'label must be one or \(2,\) of them, got \(3,\)'), (torch.tensor([0., 1.]), r'whole number in \[0, 2\], got 0.0')):
                with pytest.raises(ValueError, match=says): call(bad)
            with pytest.raises(ValueError, match='label must be given'): call(None)

CALLS_WITH_LABEL = {'sample': lambda sm: sm.sample(2, label=1), 'smoothed': lambda sm: sm.sample(2, denoise=None, label=1), 'denoise': lambda sm: sm.denoise(ZEROS.double(), label=1),
                    'step': lambda sm: sm.denoise(ZEROS.double(), 'single_step', label=1), 'complete': lambda sm: sm.complete(ZEROS.double(), torch.eye(4).bool(), label=1),
                    'elbo': lambda sm: sm.elbo(ZEROS.double(), label=1), 'iwae': lambda sm: sm.iwae(ZEROS.double(), 2, label=1)}
@pytest.mark.parametrize('call', CALLS_WITH_LABEL)
def test_a_label_that_nobody_hears_is_refused(call):
    sm = labelled(0, 0)
    sm.raw = labelled(3, 0).smooth      # it is there to compare with, and takes no part
    with pytest.raises(ValueError, match='label must be None: neither smooth nor reverse is made for labels, got 1'): CALLS_WITH_LABEL[call](sm)

def test_generators_make_it_repeatable():
    sm, x, mask = levels().double(), torch.rand(2, 1, 4, 4, dtype=torch.float64)*2 - 1, torch.eye(4).bool()
    for call in (lambda g: sm.sample(2, generator=g), lambda g: sm.sample(2, 'single_step', generator=g), lambda g: sm.denoise(x, generator=g), lambda g: sm.complete(x, mask, generator=g),
                 lambda g: sm.elbo(x, generator=g), lambda g: sm.iwae(x, 3, g)):
        assert torch.equal(call(seeded()), call(seeded())) and not torch.equal(call(seeded()), call(seeded(1)))
    assert torch.equal(sm.denoise(x, generator=seeded()), sm.denoise(x, uniforms=sm.reverse.uniforms(2, seeded())))
    gen = seeded(); u = sm.uniforms(2, gen)
    assert torch.equal(sm.complete(x, mask, generator=seeded()), sm.complete(x, mask, u, gen))      # uniforms first, then the noise
    assert torch.equal(sm.elbo(x, generator=seeded()), sm.iwae(x, 1, seeded()))

@pytest.mark.parametrize('make', [pixels, stacked])
def test_what_is_not_known_may_be_anything(make):
    sm, x, mask = make(), torch.rand(3, 1, *SIZE)*2 - 1, torch.rand(3, 1, *SIZE) < .5
    done = sm.complete(x, mask, generator=seeded())
    for hole in (torch.nan, torch.inf, 99.):
        other = torch.where(mask, x, hole)
        assert torch.equal(sm.complete(other, mask, generator=seeded()), done) and done.isfinite().all()
    bad = torch.where(mask, torch.nan, x)
    with pytest.raises(ValueError, match='known holds NaN'): sm.complete(bad, mask, generator=seeded())

def test_the_step_leaves_the_modes_alone():
    "A smooth network that is frozen while the rest trains, and a part of it that is not"
    sm, x = levels().double().train(), torch.rand(2, 1, 4, 4, dtype=torch.float64)
    sm.smooth.eval(); sm.smooth.up[0].train(); sm.reverse.net.down.eval()
    modes = {m: m.training for m in sm.modules()}
    sm.denoise(x, 'single_step'), sm.denoise(x), sm.sample(2), sm.sample(2, 'single_step')
    assert {m: m.training for m in sm.modules()} == modes and len(set(modes.values())) == 2
