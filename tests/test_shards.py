"""Work in shards: nothing is done twice, nothing depends on how often it was interrupted or on how many processes there were."""
import json
import os
import re
import shutil
import signal
from hashlib import sha256
import time
import numpy as np
import pytest
import torch
from torch.testing import assert_close
from accelerate.state import AcceleratorState, GradientState
from forks import fork, in_child, posix, together, wait
from distsmooth.engine.checkpoint import lock_folder
from distsmooth.cli import main
from distsmooth.denoising import single_step
from distsmooth.made import MADE
from distsmooth.pipeline import load_parts, save_parts
from distsmooth.pixelcnn import PixelCNNpp
from distsmooth.engine.shards import denoise_shards, image_uniforms, load_samples, sample_shards, run_shards
from distsmooth.smoothing import GaussianKernel, LaplaceKernel
from distsmooth.training import make_generator

NET = dict(size=8, n_filters=2, n_resnet=1, n_mix=1)
def saved(folder, kernel=GaussianKernel(.5), sigma_range=None, parts=('smooth', 'reverse')):
    torch.manual_seed(0)
    make = dict(smooth=lambda: PixelCNNpp(**NET, sigma_range=sigma_range), raw=lambda: PixelCNNpp(**NET, head='discretized'),
                reverse=lambda: PixelCNNpp(**NET, head='discretized', context_channels=1, sigma_range=sigma_range))
    save_parts(folder, kernel, **{p: make[p]() for p in parts})
    return str(folder)

@pytest.fixture(scope='module')
def one_level(tmp_path_factory): return saved(tmp_path_factory.mktemp('one')/'m')
@pytest.fixture(scope='module')
def levels(tmp_path_factory): return saved(tmp_path_factory.mktemp('levels')/'m', sigma_range=(.1, 1.))
@pytest.fixture(scope='module')
def samples(levels, tmp_path_factory):
    "Seven samples at level 0.2, in shards of three"
    out = tmp_path_factory.mktemp('samples')/'s'
    sample_shards(levels, out, 7, sigma=.2, batch_size=3, progress=False)
    return out

def contents(folder): return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}
def times(folder): return {p.name: p.stat().st_mtime_ns for p in folder.glob('shard-*')}

# run_shards

def counting(sizes, done):
    def work(k): done.append(k); return dict(x=torch.full((sizes[k], 1, 2, 2), float(k)))
    return work

def test_only_what_is_missing_is_done(tmp_path):
    sizes, done = [3, 3, 1], []
    paths = run_shards(tmp_path, sizes, counting(sizes, done), {}, progress=False)
    assert [p.name for p in paths] == ['shard-00000.npz', 'shard-00001.npz', 'shard-00002.npz'] and done == [0, 1, 2]
    paths[1].unlink()
    assert run_shards(tmp_path, sizes, counting(sizes, done), {}, progress=False) == paths and done == [0, 1, 2, 1]
    run_shards(tmp_path, [3, 3, 2, 3], counting([3, 3, 2, 3], done), {}, progress=False)
    assert done == [0, 1, 2, 1, 2, 3] and load_samples(tmp_path)[0].shape == (11, 1, 2, 2)

def test_an_error_keeps_the_shards_before_it(tmp_path):
    def work(k):
        if k == 2: raise KeyboardInterrupt
        return dict(x=np.zeros((3, 1, 2, 2), np.float32))
    with pytest.raises(KeyboardInterrupt): run_shards(tmp_path, [3, 3, 3], work, {}, progress=False)
    assert set(contents(tmp_path)) == {'.lock', 'settings.json', 'shard-00000.npz', 'shard-00001.npz'}

@pytest.mark.parametrize('settings, says', [(dict(a=2, b=(1, 2)), 'a: was 1, is 2'), (dict(a=1), r'b: was \[1, 2\], is not set'), (dict(a=1, b=(1, 2), c='x'), "c: was not set, is 'x'")])
def test_a_folder_of_other_settings_is_refused(tmp_path, settings, says):
    run_shards(tmp_path, [2], counting([2], []), dict(a=1, b=(1, 2)), progress=False)
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=f'{tmp_path} was made with other settings:\n  {says}\nGo on with the old settings, or take another folder'): run_shards(tmp_path, [2], counting([2], []), settings, progress=False)
    assert contents(tmp_path) == before
    run_shards(tmp_path, [2], counting([2], []), dict(b=[1, 2], a=1), progress=False)

def test_a_file_is_no_folder(tmp_path):
    (tmp_path/'f').write_text('mine')
    with pytest.raises(ValueError, match='out must be a folder'): run_shards(tmp_path/'f', [1], counting([1], []), {})
    assert (tmp_path/'f').read_text() == 'mine'

@posix
def test_killed_at_any_moment(tmp_path):
    sizes = [500]*40
    work = counting(sizes, [])
    for wait_for in (.01, .03, .05, .07):
        pid = fork(lambda: run_shards(tmp_path/'killed', sizes, work, {}, progress=False))
        time.sleep(wait_for)
        os.kill(pid, signal.SIGKILL)
        wait(pid)
    run_shards(tmp_path/'killed', sizes, work, {}, progress=False)
    run_shards(tmp_path/'whole', sizes, work, {}, progress=False)
    x, y = (load_samples(tmp_path/f)[0] for f in ('killed', 'whole'))
    assert torch.equal(x, y)

def damage(path, how):
    b = bytearray(path.read_bytes())
    if how == 'cut': b = b[:len(b)//2]
    elif how == 'bit': b[len(b)//3] ^= 4
    elif how == 'text': b = b'no shard'
    elif how == 'empty': b = b''
    else:
        with np.load(path) as f: arrays = dict(f)
        arrays['x'][-1, 0, 0, 1] = {'nan': np.nan, 'inf': -np.inf}[how]
        return np.savez(path, **arrays)
    path.write_bytes(b)

@pytest.mark.parametrize('how', ['cut', 'bit', 'text', 'empty', 'nan', 'inf'])
def test_damaged_shards_are_made_again(tmp_path, how):
    sizes, done = [3, 3, 1], []
    paths = run_shards(tmp_path, sizes, counting(sizes, done), {}, progress=False)
    x = load_samples(tmp_path)[0]
    damage(paths[1], how)
    if how not in ('nan', 'inf'):
        with pytest.raises(ValueError, match='shard-00001.npz is damaged: the command that wrote it draws it again'): load_samples(tmp_path)
    run_shards(tmp_path, sizes, counting(sizes, done), {}, progress=False)
    assert done == [0, 1, 2, 1] and torch.equal(load_samples(tmp_path)[0], x)

def test_what_is_not_finite_is_said(tmp_path):
    "A network that has hardly been trained draws such images: they are there, but not done"
    work, done = lambda k: done.append(k) or dict(x=np.full((2, 1, 2, 2), [0, np.nan][k])), []
    for _ in range(2):
        with pytest.warns(UserWarning, match='shard-00001.npz holds NaN or infinity: drawn again by the next start'): run_shards(tmp_path, [2, 2], work, {}, progress=False)
    assert done == [0, 1, 1] and load_samples(tmp_path)[0].isnan().flatten(1).all(1).tolist() == [False, False, True, True]

def test_only_what_was_asked_for_comes_back(tmp_path, levels, capsys):
    sizes = [3, 3, 3]
    paths = run_shards(tmp_path/'s', sizes, counting(sizes, []), {}, progress=False)
    assert run_shards(tmp_path/'s', [3, 2], counting(sizes, []), {}, progress=False) == paths[:2]
    assert len(load_samples(tmp_path/'s')[0]) == 9 and load_samples(paths[:2], 5)[0][:, 0, 0, 0].tolist() == [0, 0, 0, 1, 1]
    with pytest.raises(ValueError, match='n must be at most 9, the images there are, got 10'): load_samples(tmp_path/'s', 10)
    for n, shards in ((6, 2), (2, 1)):
        main(['sample', '--model', levels, '--out', str(tmp_path/'o'), '--n', str(n), '--batch_size', '3'])
        assert f'{n} images in {shards} shards: {tmp_path/"o"}' in capsys.readouterr().out
    assert len(load_samples(tmp_path/'o')[0]) == 6

def test_a_command_keeps_another_one_out(tmp_path):
    def work(k):
        with pytest.raises(RuntimeError, match=f'{tmp_path} is in use by process {os.getpid()}'): run_shards(tmp_path, [1], counting([1], []), {}, progress=False)
        return dict(x=np.zeros((1, 1, 2, 2)))
    run_shards(tmp_path, [1], work, {}, progress=False)
    assert run_shards(tmp_path, [1], work, {}, progress=False) == [tmp_path/'shard-00000.npz'], 'and lets go afterwards'
    with lock_folder(tmp_path):
        with pytest.raises(RuntimeError, match='is in use by process'): run_shards(tmp_path, [1, 1], work, {}, progress=False)
    assert not (tmp_path/'shard-00001.npz').exists()

@posix
def test_processes_share_what_is_missing(tmp_path):
    "The second half is missing: each of the two does half of it"
    run_shards(tmp_path, [1]*4, counting([1]*8, []), {}, progress=False)
    def work(rank):
        done = []
        paths = run_shards(tmp_path, [1]*8, counting([1]*8, done), {}, progress=False)
        return done, [p.exists() for p in paths]
    assert together(work) == [([4, 6], [True]*8), ([5, 7], [True]*8)]

@posix
def test_a_refusal_reaches_every_process(tmp_path):
    run_shards(tmp_path/'other', [1], counting([1], []), dict(a=1), progress=False)
    (tmp_path/'taken').mkdir()
    with lock_folder(tmp_path/'taken'):
        def work(rank):
            said = []
            for folder, settings in (('other', dict(a=2)), ('taken', {})):
                try: run_shards(tmp_path/folder, [1, 1], counting([1, 1], []), settings, progress=False)
                except (ValueError, RuntimeError) as e: said.append(str(e))
            return said
        first, second = together(work)
    assert first == second and 'a: was 1, is 2' in first[0] and f'in use by process {os.getpid()}' in first[1]
    assert not list(tmp_path.glob('*/shard-00001.npz'))

@posix
def test_the_users_accelerate_config_changes_nothing(tmp_path):
    def work():
        os.environ |= dict(ACCELERATE_MIXED_PRECISION='bf16', ACCELERATE_GRADIENT_ACCUMULATION_STEPS='4')
        AcceleratorState._reset_state(True); GradientState._reset_state()
        run_shards(tmp_path, [1], counting([1], []), {}, progress=False)
        return AcceleratorState().mixed_precision, GradientState().num_steps
    assert in_child(work) == ('no', 1)

# samples

@pytest.mark.parametrize('first, n', [(0, 1), (0, 64), (5, 59), (63, 2), (60, 200), (128, 64), (200, 1)])
def test_uniforms_depend_on_the_number_of_the_image_alone(first, n):
    net = MADE()
    blocks = torch.cat([net.uniforms(64, make_generator(3, 'x', b)) for b in range(5)])
    assert torch.equal(image_uniforms(net, 3, 'x', first, n), blocks[first:first + n])

def test_batches_do_not_change_the_images(levels, samples, tmp_path):
    x = load_samples(samples)[0]
    for size in (1, 7, 64):
        sample_shards(levels, tmp_path/f's{size}', 7, sigma=.2, batch_size=size, progress=False)
        assert_close(load_samples(tmp_path/f's{size}')[0], x, rtol=1e-4, atol=1e-4)
        denoise_shards(levels, samples, tmp_path/f'd{size}', batch_size=size, progress=False)
        assert_close(load_samples(tmp_path/f'd{size}')[0], load_samples(tmp_path/'d1')[0], rtol=1e-4, atol=1e-4)

def retrained(model, folder):
    "A copy of a model, with other weights"
    parts = load_parts(model)
    with torch.no_grad():
        for part in ('smooth', 'reverse'): next(parts[part].parameters()).mul_(1.1)
    save_parts(folder, parts.pop('kernel'), **parts)

def test_a_model_that_was_trained_further_does_not_mix(levels, tmp_path):
    model = str(tmp_path/'m')
    shutil.copytree(levels, model)
    def draw(n, model=model): return sample_shards(model, tmp_path/'s', n, sigma=.2, batch_size=2, progress=False)
    def back(model=model): return denoise_shards(model, tmp_path/'s', tmp_path/'d', batch_size=2, progress=False)
    draw(2); back()
    weights = sha256((tmp_path/'m'/'smooth'/'model.safetensors').read_bytes()).hexdigest()
    assert json.loads((tmp_path/'s'/'settings.json').read_text())['weights_sha256'] == weights
    draw(3, levels); back(levels)     # the same weights under another name
    retrained(levels, model)
    before = contents(tmp_path/'s'), contents(tmp_path/'d')
    for again in (lambda: draw(4), lambda: draw(2), back):
        with pytest.raises(ValueError, match="other settings:\n  weights_sha256: was '[0-9a-f]{64}', is '[0-9a-f]{64}'\n"): again()
    assert (contents(tmp_path/'s'), contents(tmp_path/'d')) == before

def test_images_of_other_samples_do_not_mix(levels, tmp_path):
    def back(x, out='o'):
        np.save(tmp_path/'x.npy', x)
        return load_samples(denoise_shards(levels, tmp_path/'x.npy', tmp_path/out, 'single_step', sigma=.2, batch_size=2, progress=False))[0]
    x = np.random.default_rng(0).normal(size=(5, 1, 8, 8)).astype(np.float32)
    y = back(x[:3])
    assert_close(back(x)[:3], y)                       # more of the same samples: it goes on
    assert back(x).shape == x.shape
    assert torch.equal(back(x[:4]), back(x)[:4]) and len(back(x[:3])) == 4, 'fewer of them: all shards are there'
    other = x.copy(); other[1, 0, 2, 2] += .01
    with pytest.raises(ValueError, match='shard-00000.npz was made from other samples: name another folder'): back(other)
    with pytest.raises(ValueError, match='shard-00000.npz was made from other samples'): back(np.concatenate([other, x]))
    other = x.copy(); other[-1] = 0
    with pytest.raises(ValueError, match='shard-00002.npz was made from other samples'): back(other)
    assert (back(other, 'p') != back(x)).any()

def test_shards_are_the_librarys_samples(levels, samples):
    net, (x, sigma) = load_parts(levels)['smooth'], load_samples(samples)
    assert x.shape == (7, 1, 8, 8) and x.dtype == torch.float32 and sigma == .2
    uniforms = net.uniforms(64, make_generator(0, 'sample', 0))[:7]
    expected = [net.sample(uniforms=u, sigma=.2) for u in uniforms.split(3)]
    assert torch.equal(x, torch.cat(expected)) and x.abs().max() > 1

def test_resumed_by_shard(levels, tmp_path):
    sample = lambda: sample_shards(levels, tmp_path, 4, sigma=.2, batch_size=2, progress=False)
    paths, x = sample(), load_samples(tmp_path)[0]
    paths[1].unlink()
    before = times(tmp_path)
    sample()
    after = times(tmp_path)
    assert set(after) == {'shard-00000.npz', 'shard-00001.npz'} and after['shard-00000.npz'] == before['shard-00000.npz']
    assert torch.equal(load_samples(tmp_path)[0], x)
    sample_shards(levels, tmp_path, 5, sigma=.2, batch_size=2, progress=False)
    assert times(tmp_path).items() > after.items() and torch.equal(load_samples(tmp_path)[0][:4], x)

@pytest.mark.parametrize('change', [dict(seed=1), dict(sigma=.3), dict(batch_size=2), dict(temperature=.5)], ids=str)
def test_other_samples_do_not_mix(levels, samples, change):
    before = contents(samples)
    with pytest.raises(ValueError, match=f'was made with other settings:\n  {next(iter(change))}: was .*, is .*\nGo on'):
        sample_shards(levels, samples, 7, **{**dict(sigma=.2, batch_size=3, progress=False), **change})
    assert contents(samples) == before

def test_ways_of_drawing_are_passed_on(levels, tmp_path):
    sample_shards(levels, tmp_path, 2, sigma=.2, batch_size=2, progress=False, method='naive', transform='icdf', temperature=.5)
    net = load_parts(levels)['smooth']
    assert_close(load_samples(tmp_path)[0], net.sample(uniforms=net.uniforms(64, make_generator(0, 'sample', 0))[:2], sigma=.2, method='naive', transform='icdf', temperature=.5))

def test_which_network_draws(tmp_path):
    both = saved(tmp_path/'both', parts=('smooth', 'raw'))
    for part, name in ((None, 'smooth'), ('smooth', 'smooth'), ('raw', 'raw')):
        sample_shards(both, tmp_path/f'{part}', 1, part, batch_size=1, progress=False)
        net = load_parts(both)[name]
        assert torch.equal(load_samples(tmp_path/f'{part}')[0], net.sample(uniforms=net.uniforms(64, make_generator(0, 'sample', 0))[:1]))
    reverse = saved(tmp_path/'reverse', parts=('reverse',))
    with pytest.raises(ValueError, match=r"must hold smooth or raw, it holds \['reverse'\]"): sample_shards(reverse, tmp_path/'x', 1)
    with pytest.raises(ValueError, match='must hold raw'): sample_shards(reverse, tmp_path/'x', 1, 'raw')
    assert not (tmp_path/'x').exists()

@pytest.mark.parametrize('n, batch_size', [(0, 1), (1, 0), (-1, 1)])
def test_no_samples(levels, tmp_path, n, batch_size):
    with pytest.raises(ValueError, match='(n|batch_size) must be a whole number of at least 1, got'): sample_shards(levels, tmp_path, n, batch_size=batch_size)

@pytest.mark.parametrize('how', ['sample', 'two_step', 'single_step'])
def test_a_level_that_the_network_does_not_know_is_refused(one_level, tmp_path, how):
    "It would be written down, and be wrong"
    x = tmp_path/'x.npy'
    np.save(x, np.zeros((1, 1, 8, 8), np.float32))
    with pytest.raises(ValueError, match='sigma must.*0.9'):
        if how == 'sample': sample_shards(one_level, tmp_path/'o', 1, sigma=.9, progress=False)
        else: denoise_shards(one_level, x, tmp_path/'o', how, sigma=.9, progress=False)

@posix
def test_two_processes_make_the_same_shards(levels, samples, tmp_path):
    def work(rank):
        paths = sample_shards(levels, tmp_path/'s', 7, sigma=.2, batch_size=3, progress=False)
        return paths, denoise_shards(levels, tmp_path/'s', tmp_path/'d', batch_size=4, progress=False)
    first, second = together(work)
    assert first == second and [p.exists() for p in first[0] + first[1]] == [True]*5
    ours, theirs = contents(samples), contents(tmp_path/'s')
    assert ours.keys() == theirs.keys()
    assert torch.equal(load_samples(samples)[0], load_samples(tmp_path/'s')[0])

# what can be read

@pytest.mark.parametrize('name', ['x.npz', 'smoothed_unclipped.npz', 'samples.npz', 'arr_0.npz', 'a.npy', 'a.pt', 'a.pth'])
def test_every_kind_of_file(tmp_path, name):
    x, path = torch.rand(3, 1, 4, 4), tmp_path/name
    if path.suffix == '.npz': np.savez(path, **{path.stem: x.numpy(), 'other': np.zeros(2)})
    elif path.suffix == '.npy': np.save(path, x.double().numpy())
    else: torch.save(x, path)
    read, sigma = load_samples(str(path))
    assert torch.equal(read, x) and sigma is None

def test_a_demos_samples_are_the_unclipped_ones(tmp_path):
    x = torch.randn(3, 1, 4, 4).numpy()
    np.savez_compressed(tmp_path/'samples.npz', smoothed=x.clip(-1, 1), smoothed_unclipped=x)
    assert torch.equal(load_samples(tmp_path/'samples.npz')[0], torch.from_numpy(x))

@pytest.mark.parametrize('name, value, says', [('a.npz', dict(y=np.zeros(2)), r"must hold an array called x, it holds \['y'\]"), ('a.npy', np.zeros((3, 4)), r'must hold images \(n, C, H, W\), got \(3, 4\)'),
                                               ('a.pth', {'x': torch.zeros(1)}, 'must hold images'), ('a.txt', None, 'a file that ends in one of')])
def test_what_cannot_be_read(tmp_path, name, value, says):
    path = tmp_path/name
    if path.suffix == '.npz': np.savez(path, **value)
    elif path.suffix == '.npy': np.save(path, value)
    elif path.suffix == '.pth': torch.save(value, path)
    else: path.write_text('?')
    with pytest.raises(ValueError, match=says): load_samples(path)

def test_nothing_to_read(tmp_path):
    with pytest.raises(FileNotFoundError, match='no shard-'): load_samples(tmp_path)
    with pytest.raises(FileNotFoundError, match='samples must be a folder or a file that exists'): load_samples(tmp_path/'none.npz')

@posix
def test_more_shards_than_files_may_be_open(tmp_path):
    import resource
    run_shards(tmp_path, [1]*80, counting([1]*80, []), {}, progress=False)
    limit, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir('/proc/self/fd')) + 30 if os.path.isdir('/proc/self/fd') else 60, hard))
    try: x, _ = load_samples(tmp_path)
    finally: resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    assert x[:, 0, 0, 0].tolist() == list(range(80))

# denoising

@pytest.mark.parametrize('score', ['joint', 'local'])
def test_single_step_is_the_librarys_at_the_level_of_the_samples(levels, samples, tmp_path, score):
    denoise_shards(levels, samples, tmp_path, 'single_step', score=score, batch_size=4, progress=False)
    x = load_samples(samples)[0]
    assert_close(load_samples(tmp_path)[0], single_step(load_parts(levels)['smooth'], x, .2, score), rtol=1e-4, atol=1e-5)

def test_two_steps_are_the_librarys_at_the_level_of_the_samples(levels, samples, tmp_path):
    denoise_shards(levels, samples, tmp_path, seed=3, batch_size=4, progress=False)
    net, x = load_parts(levels)['reverse'], load_samples(samples)[0]
    uniforms = net.uniforms(64, make_generator(3, 'two_step', 0))[:7]
    expected = [net.sample(context=c, uniforms=u, sigma=.2) for c, u in zip(x.split(4), uniforms.split(4))]
    assert torch.equal(load_samples(tmp_path)[0], torch.cat(expected))

def test_a_given_level_wins_over_the_written_one(levels, samples, tmp_path):
    denoise_shards(levels, samples, tmp_path/'given', 'single_step', sigma=.4, progress=False)
    assert_close(load_samples(tmp_path/'given')[0], single_step(load_parts(levels)['smooth'], load_samples(samples)[0], .4), rtol=1e-4, atol=1e-5)
    np.save(tmp_path/'x.npy', load_samples(samples)[0].numpy())
    denoise_shards(levels, tmp_path/'x.npy', tmp_path/'own', 'single_step', progress=False)
    assert json.loads((tmp_path/'own'/'settings.json').read_text())['sigma'] == .5

def test_ways_back_that_are_not_there(levels, samples, tmp_path):
    with pytest.raises(ValueError, match="how must be one of .*, got 'magic'"): denoise_shards(levels, samples, tmp_path/'o', 'magic')
    smooth = saved(tmp_path/'smooth', parts=('smooth',), sigma_range=(.1, 1.))
    with pytest.raises(ValueError, match=r"must hold reverse, it holds \['smooth'\]"): denoise_shards(smooth, samples, tmp_path/'o')
    laplace = saved(tmp_path/'laplace', LaplaceKernel(.5), (.1, 1.))
    with pytest.raises(ValueError, match='Gaussian noise alone, not for LaplaceKernel'): denoise_shards(laplace, samples, tmp_path/'o', 'single_step')
    with pytest.raises(ValueError, match="what: was 'samples', is 'two_step'"): denoise_shards(levels, samples, samples, progress=False)
    assert not (tmp_path/'o').exists()

def test_images_of_another_size(levels, tmp_path):
    np.save(tmp_path/'x.npy', np.zeros((2, 1, 12, 12), np.float32))
    for how in ('two_step', 'single_step'):
        with pytest.raises(ValueError, match=rf'model must be one of images \(1, 12, 12\) such as the samples, got .{re.escape(levels)}., of images \(1, 8, 8\)'): denoise_shards(levels, tmp_path/'x.npy', tmp_path/how, how, progress=False)

# labels

@pytest.fixture(scope='module')
def labelled(tmp_path_factory):
    torch.manual_seed(0)
    net, folder = dict(**NET, n_classes=3), tmp_path_factory.mktemp('labelled')/'m'
    save_parts(folder, GaussianKernel(.5), smooth=PixelCNNpp(**net), reverse=PixelCNNpp(**net, head='discretized', context_channels=1))
    return str(folder)

@pytest.mark.parametrize('label, asked', [(None, [0, 1, 2, 0, 1]), (2, [2]*5)])
def test_a_class_or_each_in_turn_there_and_back(label, asked, labelled, tmp_path):
    parts, told = load_parts(labelled), torch.tensor(asked)
    x = load_samples(sample_shards(labelled, tmp_path/'noisy', 5, label=label, batch_size=3, progress=False))[0]
    assert_close(x, parts['smooth'].sample(uniforms=image_uniforms(parts['smooth'], 0, 'sample', 0, 5), label=told))
    back = load_samples(denoise_shards(labelled, tmp_path/'noisy', tmp_path/'clean', batch_size=3, progress=False))[0]
    uniforms = image_uniforms(parts['reverse'], 0, 'two_step', 0, 5)
    assert_close(back, parts['reverse'].sample(uniforms=uniforms, context=x, label=told))
    stepped = load_samples(denoise_shards(labelled, tmp_path/'noisy', tmp_path/'one', 'single_step', batch_size=3, progress=False))[0]
    assert_close(stepped, single_step(parts['smooth'], x, .5, label=told))
    other = load_samples(denoise_shards(labelled, tmp_path/'noisy', tmp_path/'other', label=1, batch_size=3, progress=False))[0]
    assert_close(other, parts['reverse'].sample(uniforms=uniforms, context=x, label=1))

def test_a_class_that_is_none(labelled, one_level, tmp_path):
    with pytest.raises(ValueError, match='label must be a whole number in .0, 2., got 3'): sample_shards(labelled, tmp_path/'s', 2, label=3)
    with pytest.raises(ValueError, match='label must be None'): sample_shards(one_level, tmp_path/'s', 2, label=1)
    assert not (tmp_path/'s').exists()
