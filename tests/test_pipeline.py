"""SmoothedModel: the same uniforms give the same samples, saving loses nothing, bounds are bounds, and misuse says what is wrong."""
import json
import os
import pickletools
import pytest
import torch
from torch.testing import assert_close
from distsmooth.conditional import StackedPixelCNNpp
from distsmooth.data import load_dataset
from distsmooth.denoising import single_step
from distsmooth.made import MADE
from distsmooth.pipeline import PRETRAINED, SmoothedModel
from distsmooth.pixelcnn import PixelCNNpp
from distsmooth.smoothing import GaussianKernel, LaplaceKernel, UniformKernel

def made(**kwargs): return SmoothedModel(MADE(n_mix=2), MADE(n_mix=2, context_channels=1), **kwargs).eval()
def pixels(channels=1):
    net = dict(channels=channels, size=8, n_filters=4, n_resnet=1, n_mix=2)
    return SmoothedModel(PixelCNNpp(**net), PixelCNNpp(**net, head='discretized', context_channels=channels), GaussianKernel(0.3)).eval()
def stacked():
    net = dict(size=8, n_filters=4, n_resnet=1, n_mix=2)
    return SmoothedModel(PixelCNNpp(**net), StackedPixelCNNpp(**net), LaplaceKernel(0.2)).eval()
MODELS = {'made': made, 'pixels': pixels, 'colours': lambda: pixels(3), 'stacked': stacked}

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
    elbo, iwae = (sm.bound(x, k, torch.Generator().manual_seed(0)).mean() for k in (1, 50))
    axis = torch.linspace(-12, 12, 400)
    grid = torch.cartesian_prod(axis, axis)[:, None, None]
    with torch.no_grad():
        log_p = sm.smooth.log_prob(grid)
        exact = torch.stack([(log_p + sm.reverse.log_prob(p.expand_as(grid), grid)).logsumexp(0) for p in x[:6, None]]) + 2*(axis[1]-axis[0]).log()
    assert elbo < iwae
    assert sm.bound(x[:6], 2000, torch.Generator().manual_seed(0)).mean() < exact.mean() + 0.1
    assert sm.bound(x[:6], 1, torch.Generator().manual_seed(0)).mean() < exact.mean()

BAD = {
    'unknown way back': (lambda: made().sample(2, denoise='magic'), "denoise must be 'two_step', 'single_step' or None, got 'magic'"),
    'no reverse model': (lambda: SmoothedModel(MADE()).sample(2), 'needs a reverse model'),
    'step with other noise': (lambda: made(kernel=UniformKernel(.2)).sample(2, denoise='single_step'), 'Gaussian noise alone'),
    'other sigma': (lambda: made().sample(2, sigma=.3), 'sigma must be 0.5'),
    'how many': (lambda: made().sample(), 'n or uniforms'),
    'unconditional reverse': (lambda: SmoothedModel(MADE(), MADE()), 'reverse must be conditional'),
    'other size': (lambda: SmoothedModel(MADE(), MADE((1, 3), context_channels=1)), 'size of smooth'),
    'no draws': (lambda: made().bound(torch.zeros(1, 1, 1, 2), 0), 'k must be at least 1, got 0'),
    'wrong size': (lambda: made().bound(torch.zeros(1, 1, 1, 3)), 'must be'),
    'not a number': (lambda: made().denoise(torch.full((1, 1, 1, 2), torch.nan), 'single_step'), 'NaN'),
    'method': (lambda: made().sample(2, method='magic'), 'method must be one of'),
}
@pytest.mark.parametrize('call, says', BAD.values(), ids=BAD)
def test_bad_input(call, says):
    with pytest.raises(ValueError, match=says): call()

def test_nothing_to_load(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"name must be one of \['digits'\]"): SmoothedModel.from_pretrained('cats')
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
    bits = -sm.bound(x)/784/torch.tensor(2.).log()
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
    with pytest.raises(ValueError, match='temperature must be a positive number'): sm.sample(2, temperature=0)
    with pytest.raises(ValueError, match='two_step'): SmoothedModel(sm.smooth).complete(torch.zeros(1, 1, *SIZE), torch.zeros(*SIZE, dtype=torch.bool))
