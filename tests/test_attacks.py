"""What was tried to break the library, each with what it says now: lost runs, destroyed models, silent NaN, wrong data, wrong calls."""
import copy
import io
import json
import math
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.testing import assert_close
from forks import fork, posix, wait
from distsmooth import training
from distsmooth.autoregressive import in_batches
from distsmooth.checks import as_generator
from distsmooth.data import Folder, Images, fingerprint, load_dataset
from distsmooth.denoising import SmoothedDataset, single_step
from distsmooth.engine.checkpoint import load_plain, write_whole
from distsmooth.engine.experiment import CSVLog, Data, Experiment, Log, Network, Objective, Recipe, fit
from distsmooth.engine.official import load_official
from distsmooth.engine.shards import denoise_shards, load_samples, run_shards, sample_shards
from distsmooth.logistic import LogisticMixture, quantize
from distsmooth.made import MADE
from distsmooth.pipeline import SmoothedModel, load_parts, save_parts
from distsmooth.pixelcnn import PixelCNNpp
from distsmooth.smoothing import GaussianKernel, LaplaceKernel, UniformKernel
from distsmooth.toys import TOYS, load_toy
from distsmooth.training import TrainConfig, Trainer, batch_indices, raw_objective, reverse_objective, smooth_objective, train, training_steps

NET = dict(size=8, n_filters=4, n_resnet=1, n_mix=2, dropout=0.)
KERNEL = GaussianKernel(.5)
def net(**kw): return PixelCNNpp(**NET | kw).eval()
def model(**kw): return SmoothedModel(net(), net(context_channels=1, head='discretized'), KERNEL, **kw).eval()
def image(n=2): return quantize(torch.rand(n, 1, 8, 8)*2 - 1)
def broken(part, where='out.bias', index=0):
    "A copy with one NaN among its weights"
    part = copy.deepcopy(part)
    with torch.no_grad(): dict(part.named_parameters())[where].view(-1)[index] = math.nan
    return part

TINY = Recipe(network=Network(n_filters=4, n_resnet=1, n_mix=1), train=TrainConfig(steps=2, batch_size=4, init_batch=0, warmup=1),
              log=Log(every=1, test_every=0, test_images=2, sample_every=0, samples=0, save_every=2, tensorboard=False))
def of(recipe=TINY, **parts): return Recipe(**vars(recipe) | parts)

# a run is lost

def other_disk():
    "A folder on another file system than /tmp, if there is one"
    shm = Path('/dev/shm')
    if not os.access(shm, os.W_OK) or shm.stat().st_dev == Path('/tmp').stat().st_dev: pytest.skip('needs a second file system at /dev/shm')
    return shm/f'distsmooth-test-{os.getpid()}'

def test_out_may_be_a_link_to_another_file_system_and_parts_of_it_too(tmp_path):
    disk = other_disk()
    try:
        (disk/'run').mkdir(parents=True); (disk/'smooth').mkdir()
        (tmp_path/'run').symlink_to(disk/'run')
        fit(TINY, tmp_path/'run', progress=False)
        assert load_parts(tmp_path/'run').keys() == {'kernel', 'smooth'}
        (tmp_path/'model').mkdir(); (tmp_path/'model'/'smooth').symlink_to(disk/'smooth')
        for sigma in (.3, .4):
            save_parts(tmp_path/'model', GaussianKernel(sigma), smooth=net())
            assert load_parts(tmp_path/'model')['kernel'].sigma == sigma and not (tmp_path/'model'/'.new').exists()
        assert (disk/'smooth'/'model.safetensors').is_file()
    finally: shutil.rmtree(disk, ignore_errors=True)

def test_what_cannot_be_saved_fails_before_the_first_step(tmp_path, monkeypatch):
    monkeypatch.setattr(Trainer, 'advance', lambda *a: pytest.fail('a step was taken'))
    (tmp_path/'smooth').write_text('a file where the folder of the weights belongs')
    with pytest.raises(OSError, match='smooth'): fit(TINY, tmp_path, progress=False)

def test_a_run_can_be_resumed_from_its_very_start(tmp_path):
    f = Experiment(TINY, tmp_path/'a')
    f.run.advance = lambda batch: 1/0
    with f.checkpoints, pytest.raises(ZeroDivisionError): f.go(False)
    fit(TINY, tmp_path/'a', resume=True, progress=False), fit(TINY, tmp_path/'b', progress=False)
    a, b = (load_parts(tmp_path/name)['smooth'].state_dict() for name in 'ab')
    assert_close(a, b, rtol=0, atol=0)

@posix
def test_debris_of_killed_runs_goes_with_the_next_start(tmp_path):
    dead = fork(lambda: None)
    wait(dead)
    (tmp_path/'r'/'samples').mkdir(parents=True); (tmp_path/'r'/'.new').mkdir()
    left = [tmp_path/'r'/f'.log.csv.{dead}.part', tmp_path/'r'/'samples'/f'.step-000000001.png.{dead}.part', tmp_path/'r'/'.new'/'config.json']
    kept = [tmp_path/'r'/f'.log.csv.{os.getppid()}.part', tmp_path/'r'/'.mine.part', tmp_path/'r'/f'mine.{dead}.part']
    for p in left + kept: p.write_text('half')
    fit(TINY, tmp_path/'r', progress=False)
    assert not any(p.exists() for p in left) and all(p.exists() for p in kept)
    (tmp_path/'s').mkdir(); (part := tmp_path/'s'/f'.shard-00007.npz.{dead}.part').write_text('half')
    run_shards(tmp_path/'s', [1], lambda k: dict(x=torch.zeros(1, 1, 2, 2)), {}, progress=False)
    assert not part.exists()

def test_the_clock_may_be_set_back(tmp_path, monkeypatch):
    monkeypatch.setattr(time, 'time', lambda t=iter(range(10**6, 0, -1)): next(t))
    fit(TINY, tmp_path, progress=False)
    assert all(float(row['images_per_second']) > 0 for row in CSVLog(tmp_path/'log.csv', 9).rows)

@pytest.mark.parametrize('damage', [b'3,1,2', b'\xff\xfe,9,9,9,9,9,9,9', b'\0\0\0\0', b'x,1,2,3,4,5,6,7', b'3,1,2,3,4,5,6,7,8,9'])
def test_a_damaged_log_keeps_its_other_lines(tmp_path, damage):
    log = CSVLog(tmp_path/'log.csv')
    for step in (1, 2): log.add(step=step, lr=.5)
    was = (tmp_path/'log.csv').read_bytes() + damage
    (tmp_path/'log.csv').write_bytes(was)
    with pytest.warns(UserWarning, match='log.csv is damaged in 1 lines: it is kept as .*log.csv.damaged'): log = CSVLog(tmp_path/'log.csv', 5)
    assert [row['step'] for row in log.rows] == ['1', '2'] and (tmp_path/'log.csv.damaged').read_bytes() == was

# a file that is none

@posix
def test_devices_are_written_through_and_links_are_followed(tmp_path):
    null = os.stat('/dev/null')
    write_whole('/dev/null', lambda f: f.write(b'x'))
    assert os.stat('/dev/null').st_rdev == null.st_rdev
    (tmp_path/'there').mkdir(); (tmp_path/'link').symlink_to(tmp_path/'there'/'file')
    for text in (b'one', b'two'):
        write_whole(tmp_path/'link', lambda f: f.write(text))
        assert (tmp_path/'link').is_symlink() and (tmp_path/'there'/'file').read_bytes() == text
    with pytest.raises(IsADirectoryError, match='there'): write_whole(tmp_path/'there', lambda f: f.write(b'x'))

@posix
def test_a_pipe_with_the_name_of_an_image_is_none(tmp_path):
    os.mkfifo(tmp_path/'a.png'); os.mkfifo(tmp_path/'a.npz')
    with pytest.raises(FileNotFoundError, match='no images below'): load_dataset(tmp_path)
    with pytest.raises(FileNotFoundError, match='samples must be a folder or a file'): load_samples(tmp_path/'a.npz')

@pytest.mark.parametrize('content', [b'', b'hello', b'PK\3\4 half', np.random.default_rng(0).bytes(200)])
@pytest.mark.parametrize('name', ['a.pth', 'a.npz', 'a.npy'])
def test_files_that_are_none_are_named_and_nobody_advises_to_run_them(tmp_path, name, content):
    (path := tmp_path/name).write_bytes(content)
    for read in [load_samples, *[load_official, load_plain]*(name == 'a.pth')]:
        with pytest.raises(ValueError, match=name) as e: read(path)
        assert 'weights_only' not in str(e.value) and 'allow_pickle' not in str(e.value)

@pytest.mark.parametrize('state', [3, [], [3], {'a': torch.zeros(1)}, {3: 4}, {'u_init.conv.weight_v': 3, 'nin_out.lin_a.bias': 4}])
def test_a_checkpoint_of_something_else(tmp_path, state):
    torch.save(state, tmp_path/'c.pth')
    with pytest.raises(ValueError, match='state must hold u_init and nin_out'): load_official(tmp_path/'c.pth')

# wrong or destroyed model

def test_a_path_is_a_path_and_a_bare_word_a_model_of_the_library(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_parts('digits', KERNEL, smooth=net())
    for name in ('./digits', Path('digits'), str(tmp_path/'digits'), '../' + tmp_path.name + '/digits'): assert load_parts(name)['smooth'].size == (8, 8)
    with pytest.warns(UserWarning, match="'digits' is a model of the library, the folder is ./digits"): assert load_parts('digits')['smooth'].size == (28, 28)
    save_parts('mine', KERNEL, smooth=net())
    assert load_parts('mine')['smooth'].size == (8, 8)

def test_a_name_that_is_none_is_no_matter_of_the_network(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path); monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    (tmp_path/'runs'/'smooth').mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="got 'runs/smoth': there is no such folder, did you mean 'runs/smooth'"): load_parts('runs/smoth')
    with pytest.raises(FileNotFoundError, match="got 'somebody/nothing': no such folder here, and the hub did not give it"): load_parts('somebody/nothing')
    with pytest.raises(FileNotFoundError, match='there is no such folder'): load_parts(Path('somebody/nothing'))
    for name in (None, 3, ''):
        with pytest.raises(TypeError, match='name must be text or a path'): load_parts(name)

def contents(folder): return {p.relative_to(folder): p.read_bytes() for p in sorted(folder.rglob('*')) if p.is_file() and p.name != '.lock'}

@pytest.mark.parametrize('parts', [('smooth', 'reverse'), ('smooth',), ('reverse',)])
def test_a_run_does_not_write_over_a_model(tmp_path, parts):
    sm = model()
    save_parts(tmp_path, KERNEL, **{p: getattr(sm, p) for p in parts})
    before = contents(tmp_path)
    with pytest.raises(FileExistsError, match='out holds a model that no run made.*name another folder'): fit(TINY, tmp_path, progress=False)
    assert contents(tmp_path) == before

@pytest.mark.parametrize('write', [lambda sm, d: save_parts(d, KERNEL, smooth=sm.smooth), lambda sm, d: SmoothedModel(sm.smooth, kernel=KERNEL).save_pretrained(d)], ids=['save_parts', 'save_pretrained'])
def test_parts_are_not_lost_by_a_save(tmp_path, write):
    sm = model()
    sm.save_pretrained(tmp_path)
    before = contents(tmp_path)
    with pytest.raises(FileExistsError, match='folder holds a model with reverse, which would be lost'): write(sm, tmp_path)
    assert contents(tmp_path) == before

@pytest.mark.parametrize('change', [dict(smooth='Foo'), dict(smooth=3), dict(smooth=None), dict(smooth=[]), dict(kernel=3), dict(kernel={}), dict(kernel={'Foo': 1}), dict(kernel={'GaussianKernel': 'a'}),
                                    dict(kernel={'GaussianKernel': -1}), dict(sha256=3), dict(sha256={'smooth/config.json': 3}), 'x', [], 3, {}], ids=str)
def test_a_config_of_something_else(tmp_path, change):
    "Is named; and the folder can be saved into again"
    save_parts(tmp_path/'m', KERNEL, smooth=net())
    path = tmp_path/'m'/'config.json'
    config = json.loads(path.read_text()) | change if isinstance(change, dict) and change else change
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match='config.json') as e: load_parts(tmp_path/'m')
    assert str(tmp_path/'m') in str(e.value)
    save_parts(tmp_path/'m', KERNEL, smooth=net())
    assert load_parts(tmp_path/'m').keys() == {'kernel', 'smooth'}

@pytest.mark.parametrize('file, content', [('config.json', b'{'), ('config.json', b'[]'), ('config.json', b'{"n_filters": "a"}'), ('config.json', b'{"colour": 3}'), ('config.json', b'{"size": 8, "n_filters": 5}'),
                                           ('model.safetensors', b''), ('model.safetensors', b'\x10\0\0\0\0\0\0\0{'), ('model.safetensors', None)])
def test_a_part_of_something_else(tmp_path, file, content):
    "In a folder without check sums, as 0.1 wrote them"
    save_parts(tmp_path, KERNEL, smooth=net())
    config = json.loads((tmp_path/'config.json').read_text())
    (tmp_path/'config.json').write_text(json.dumps({k: v for k, v in config.items() if k != 'sha256'}))
    if content is None: save_file({'x': torch.zeros(1)}, tmp_path/'smooth'/file)
    else: (tmp_path/'smooth'/file).write_bytes(content)
    with pytest.raises(ValueError, match=f'smooth of {tmp_path}: config.json and model.safetensors in it do not make a PixelCNNpp'): load_parts(tmp_path)

# shards

def some_shards(folder, sizes=(2, 2, 1)):
    return run_shards(folder, list(sizes), lambda k: dict(x=torch.full((sizes[k], 1, 2, 2), k/10)), {}, progress=False)

def test_a_gap_is_refused(tmp_path):
    paths = some_shards(tmp_path)
    paths[1].unlink()
    with pytest.raises(ValueError, match='shard-00001.npz is missing'): load_samples(tmp_path)

def test_every_flipped_bit_of_a_shard_is_noticed(tmp_path):
    "Also those of the zip file's tables, which its own check sums leave out"
    path = some_shards(tmp_path, [1])[0]
    whole = path.read_bytes()
    for i in range(0, 8*len(whole), 7):
        b = bytearray(whole); b[i//8] ^= 1 << i % 8
        path.write_bytes(b)
        try: x, _ = load_samples([path])
        except ValueError as e: assert 'is damaged' in str(e)
        else: assert torch.equal(x, torch.zeros(1, 1, 2, 2))  # in the line of the check sum itself
    path.write_bytes(whole[:-73])  # a shard of 0.1 has no such line
    assert torch.equal(load_samples([path])[0], torch.zeros(1, 1, 2, 2))

def test_the_way_back_takes_smoothed_images_alone(tmp_path):
    sm = model(raw=net(head='discretized'))
    sm.save_pretrained(tmp_path/'m')
    how = dict(batch_size=2, progress=False)
    sample_shards(tmp_path/'m', tmp_path/'raw', 2, 'raw', **how), sample_shards(tmp_path/'m', tmp_path/'smooth', 2, **how)
    denoise_shards(tmp_path/'m', tmp_path/'smooth', tmp_path/'clean', **how)
    for samples, says in (('raw', "drawn by a 'raw' network"), ('clean', r'denoised already \(two_step\)')):
        for given in (tmp_path/samples, sorted((tmp_path/samples).glob('shard-*'))):
            with pytest.raises(ValueError, match=f'samples must be smoothed images, those in .*{samples} are {says}'): denoise_shards(tmp_path/'m', given, tmp_path/'x', **how)
    (tmp_path/'smooth'/'settings.json').write_text('[]')
    with pytest.raises(ValueError, match='settings.json is damaged'): sample_shards(tmp_path/'m', tmp_path/'smooth', 2, **how)

@pytest.mark.parametrize('dtype', [np.uint8, np.int64, complex, bool])
def test_arrays_of_something_else(tmp_path, dtype):
    np.save(tmp_path/'x.npy', np.zeros((2, 1, 8, 8), dtype))
    with pytest.raises(TypeError, match='x.npy must be a float tensor, got torch'): load_samples(tmp_path/'x.npy')

# silent NaN

METHODS = ['naive', 'cached', 'jacobi', 'jacobi_rows']
@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize('index', [0, 1, 3], ids=['logit', 'other logit', 'a mean'])
def test_one_nan_shows_in_every_pixel(method, index):
    "Also a mean that is never chosen"
    bad = broken(net(), index=index)
    with torch.no_grad(): bad.out.bias[0 if index else 1] -= 0 if index == 1 else 20
    for transform in ('choice', 'icdf'):
        with pytest.warns(RuntimeWarning, match='2 of 2 samples of PixelCNNpp hold NaN or infinity: was it trained too briefly'): x = bad.sample(2, method=method, transform=transform)
        assert x.isnan().all()

def test_a_likelihood_that_is_nan_names_model_and_weights():
    bad, x = broken(net()), image(3)
    for call in (lambda: bad.log_prob(x), lambda: bad.dist().log_prob(x, batch_size=2), lambda: SmoothedModel(bad, net(context_channels=1)).elbo(x), lambda: single_step(bad, x, .5), lambda: bad.dist().score(x)):
        with pytest.raises(FloatingPointError, match=r"PixelCNNpp is NaN for \d of \d images: NaN or infinity in its weights \['out.bias'\]. Was it trained too briefly"): call()
    with pytest.raises(FloatingPointError, match='the score of PixelCNNpp is NaN'): single_step(bad, x, .5, 'local')
    big = net()
    with torch.no_grad():
        for name, p in big.named_parameters():
            if name.endswith('weight_g'): p.fill_(1e30)
    with pytest.raises(FloatingPointError, match='its weights are finite, but too large'): big.log_prob(x)

@pytest.mark.parametrize('how', [dict(temperature=1e6), dict()])
def test_there_is_no_way_back_from_nan(how):
    sm = model()
    if not how: sm.smooth = broken(sm.smooth)
    with pytest.warns(RuntimeWarning): sm.sample(2, denoise=None, **how)
    for call in (lambda: sm.sample(2, **how), lambda: sm.sample(2, 'single_step', **how), lambda: sm.complete(image(), torch.zeros(8, 8).bool(), **how)):
        with pytest.warns(RuntimeWarning), pytest.raises(FloatingPointError, match=r'smooth drew NaN or infinity in \d of 2 samples.*trained too briefly, or is the temperature too high'): call()

# silent data errors

def saved(path, pixels, **kw):
    im = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    im.save(path, **kw)
    return load_dataset(path.parent, size=8)[0][0]

def test_images_of_16_bits(tmp_path):
    levels = np.arange(64, dtype=np.uint16).reshape(8, 8)*1040
    x = saved(tmp_path/'a.png', levels)
    assert_close((x + 1)*127.5, torch.tensor(levels/257).round().float().expand(3, 8, 8), atol=1e-3, rtol=0)

@pytest.mark.parametrize('dtype, says', [(np.int32, 'whole numbers of 32 bits'), (np.float32, 'floating point numbers of 32 bits')])
def test_images_without_a_white_are_refused(tmp_path, dtype, says):
    with pytest.raises(ValueError, match=f'a.tif: its pixels are {says}'): saved(tmp_path/'a.tif', np.ones((8, 8), dtype))

def test_images_are_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x112] = 6  # the camera was held sideways
    pixels = np.zeros((8, 8), np.uint8); pixels[0] = 255
    assert saved(tmp_path/'a.png', pixels, exif=exif)[0].gt(0).nonzero()[:, 1].unique().tolist() == [7]

@pytest.mark.parametrize('mode, colour', [('RGBA', (255, 0, 0, 0)), ('LA', (0, 0))])
def test_what_is_transparent_lies_on_white(tmp_path, mode, colour):
    assert (saved(tmp_path/'a.png', Image.new(mode, (8, 8), colour)) == 1).all()
    half = saved(tmp_path/'a.png', Image.new('RGBA', (8, 8), (255, 0, 0, 128)))
    assert (half[0] == 1).all() and half[1].abs().max() < .02

def pictures(folder, n, sub=lambda i: ''):
    for i in range(n):
        (folder/sub(i)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8), 20*i, np.uint8)).save(folder/sub(i)/f'{i:02}.png')
    return folder

def test_a_folder_that_grew_is_another_one(tmp_path):
    recipe = of(data=Data(str(pictures(tmp_path/'im', 6)), size=8), train=TrainConfig(steps=4, batch_size=2, init_batch=0))
    f = Experiment(recipe, tmp_path/'r')
    f._save()
    pictures(tmp_path/'im', 8)
    with pytest.raises(ValueError, match='data must be the images that the run in .* began with, 6 images, .*, got 8 images'): fit(recipe, tmp_path/'r', resume=True, progress=False)
    for p in sorted((tmp_path/'im').iterdir())[6:]: p.unlink()
    fit(recipe, tmp_path/'r', resume=True, progress=False)

def test_fingerprints_tell_images_apart():
    a, b = np.zeros((2, 4, 4), np.uint8), np.ones((2, 4, 4), np.uint8)
    assert fingerprint(Images(a, [0, 1])) == fingerprint(Images(a, [1, 1])) != fingerprint(Images(b, [0, 1])) and fingerprint(torch.zeros(3, 1)).startswith('3 images')

def test_subfolders_are_classes_and_slices_are_batches(tmp_path):
    ds = Folder(pictures(tmp_path/'a', 6, lambda i: 'cat/old' if i % 2 else 'dog'), size=8)
    assert ds.classes == ['cat', 'dog'] and [ds[i][1] for i in range(6)] == [0, 0, 0, 1, 1, 1]
    x, labels = ds[1:5]
    assert x.shape == (4, 3, 8, 8) and labels.tolist() == [0, 0, 1, 1] and torch.equal(x[0], ds[1][0])
    assert torch.equal(ds[[5, 0]][0], torch.stack([ds[5][0], ds[0][0]])) and torch.equal(ds[torch.tensor([2])][0][0], ds[2][0])
    assert torch.equal(training.labels(ds, torch.tensor([0, 5])), torch.tensor([0, 1]))
    assert Folder(pictures(tmp_path/'b', 4, lambda i: 'cat' if i else ''), size=8).classes == []

@pytest.mark.parametrize('name', ['', None, 3, []])
def test_data_of_no_name(name):
    with pytest.raises(ValueError, match='name must be one of'): load_dataset(name)
    if not isinstance(name, str):
        with pytest.raises(ValueError, match='name must be a text'): Data(name)

@pytest.mark.parametrize('data, says', [(torch.full((16, 1, 8, 8), math.nan), 'data holds NaN'), (torch.rand(16, 1, 8, 8)*255, r'data must be on the scale \[-1, 1\], found .* 8-bit levels')])
def test_data_are_to_blame_by_their_name(data, says):
    for objective in (raw_objective, smooth_objective(KERNEL)):
        with pytest.raises(ValueError, match=says): train(net(), data, objective, TrainConfig(steps=2, batch_size=4))

def test_images_from_0_to_255_are_refused_by_name():
    sm, x = model(), torch.rand(2, 1, 8, 8)*255
    calls = {'x': [lambda: sm.smooth.log_prob(x), lambda: sm.smooth.dist().score(x), lambda: sm.complete(x, torch.ones(8, 8)), lambda: KERNEL.sample(x)],
             'x_noisy': [lambda: sm.denoise(x), lambda: sm.denoise(x, 'single_step'), lambda: single_step(sm.smooth, x, .5)]}
    for name, each in calls.items():
        for call in each:
            with pytest.raises(ValueError, match=rf'{name} must be on the scale \[-1, 1\], found .* 8-bit levels'): call()

def test_smoothed_values_are_no_8_bit_levels():
    disc, x = net(head='discretized'), image()
    disc.log_prob(x), disc.log_prob(x + 5e-5)
    with pytest.raises(ValueError, match='x must hold 8-bit levels, .* found values 0.00.* off: smoothed images'): disc.log_prob(x.clamp(-.9, .9) + 1/300)

# silently wrong calls

INTS, NAN = torch.ones(2, 2, dtype=torch.long), torch.full((2, 2), math.nan)
@pytest.mark.parametrize('kernel', [GaussianKernel(.5), LaplaceKernel(.5), UniformKernel(.5)])
def test_kernels_ask_for_numbers(kernel):
    for a, b in ((INTS, INTS), (INTS, NAN), (NAN, INTS), (NAN, torch.zeros(2, 2)), (torch.zeros(2, 2), NAN)):
        with pytest.raises((TypeError, ValueError), match='x(_noisy)? (must be a float tensor|holds NaN)'): kernel.log_prob(a, b)

@pytest.mark.parametrize('name', TOYS)
def test_toys_ask_for_numbers(name):
    toy = load_toy(name)
    for bad in (INTS[:, :toy.dims], NAN[:, :toy.dims], [[0., 0.]], torch.zeros(2, 3), torch.zeros(0, toy.dims)):
        with pytest.raises((TypeError, ValueError), match='points'): toy.log_prob(bad)

def test_mixtures_ask_for_uniforms():
    mix = LogisticMixture(torch.randn(2, 6, 4, 4))
    for bad in (torch.full((2, 2, 4, 4), v) for v in (math.nan, 7., -.1)):
        for transform in ('choice', 'icdf'):
            with pytest.raises(ValueError, match='uniforms'): mix.from_uniforms(bad, transform)
    for n in (0, -1, 1.5):
        with pytest.raises(ValueError, match='n_steps must be a whole number of at least 1'): mix.icdf(torch.rand(2, 1, 4, 4), n)

def test_n_and_uniforms_must_agree():
    sm = model()
    for uniforms in (sm.uniforms(2), sm.smooth.uniforms(100), (sm.smooth.uniforms(100), sm.reverse.uniforms(2)), 3):
        with pytest.raises(ValueError, match='uniforms must be'): sm.sample(100, uniforms=uniforms)
    with pytest.raises(ValueError, match=r'uniforms must be \(100, 2, 8, 8\), got \(2, 2, 8, 8\)'): sm.smooth.sample(100, uniforms=sm.smooth.uniforms(2))
    with pytest.raises(ValueError, match='uniforms must be'): sm.complete(image(3), torch.ones(8, 8), sm.uniforms(2))
    assert sm.sample(uniforms=sm.uniforms(2)).shape == sm.sample(2, uniforms=sm.uniforms(2)).shape == (2, 1, 8, 8)

@pytest.mark.parametrize('bad', [-1, math.nan, math.inf, 'x'])
def test_objectives_ask_for_noise(bad):
    with pytest.raises(ValueError, match='clean_noise must be a number of at least 0'): reverse_objective(KERNEL, bad)
    with pytest.raises(ValueError, match='clean_noise must be a number of at least 0'): Objective(clean_noise=bad)

@pytest.mark.parametrize('field, value', [('lr', math.inf), ('steps', 1.5), ('bf16', 'x'), ('compile', 2), ('betas', (2., 3.)), ('betas', .9), ('betas', (.9,)), ('betas', (.9, math.nan)), ('seed', 'a'), ('batch_size', True),
                                          ('schedule', 'linear'), ('num_workers', -1), ('lr', 10**400)])
def test_settings_ask_for_their_kind(field, value):
    with pytest.raises(ValueError, match=f'{field} must be'): TrainConfig(**{field: value})

@pytest.mark.parametrize('make, field, value', [(Network, 'context', 'stakced'), (Network, 'n_filters', 1.5), (Network, 'n_mix', 0), (Network, 'dropout', 1.), (Data, 'size', 0), (Data, 'download', 'yes'), (Log, 'tensorboard', 'x')])
def test_recipes_ask_for_their_kind(make, field, value):
    with pytest.raises(ValueError, match=f'{field} must be'): make(**{field: value})

@pytest.mark.parametrize('args, name', [((20, -1, 0), 'batch_size'), ((20, 0, 0), 'batch_size'), ((0, 4, 0), 'n'), ((20, 4, -1), 'step'), ((20, 4, .5), 'step')])
def test_batches_ask_for_numbers(args, name):
    with pytest.raises(ValueError, match=f'{name} must be a whole number of at least'): batch_indices(*args)

def test_empty_batches_are_named():
    sm, none = model(), torch.zeros(0, 1, 8, 8)
    for name, call in (('x', lambda: sm.smooth.log_prob(none)), ('x_noisy', lambda: sm.denoise(none)), ('x_noisy', lambda: sm.denoise(none, 'single_step')), ('x', lambda: sm.complete(none, torch.ones(8, 8))), ('x', lambda: sm.elbo(none))):
        with pytest.raises(ValueError, match=rf'{name} must be \([Bn], 1, 8, 8\), got \(0, 1, 8, 8\)'): call()
    assert LogisticMixture(torch.zeros(0, 6, 2, 2)).log_prob(none[..., :2, :2]).shape == (0, 2, 2)

@pytest.mark.parametrize('method', METHODS)
def test_samples_under_autocast_are_the_samples(method):
    sm, u = model(), model().uniforms(2, seed=0)
    plain = sm.sample(uniforms=u, method=method)
    with torch.autocast('cpu', torch.bfloat16): assert torch.equal(sm.sample(uniforms=u, method=method), plain)

# what makes work easy

def test_a_seed_is_a_generator():
    sm, gen, mask = model(), lambda: torch.Generator().manual_seed(3), torch.eye(8)
    for call in (lambda **k: sm.uniforms(2, **k)[1], lambda **k: sm.sample(2, **k), lambda **k: sm.sample(2, None, **k), lambda **k: sm.smooth.sample(2, **k), lambda **k: sm.smooth.dist().sample((2,), **k),
                 lambda **k: sm.denoise(image(2)*0, **k), lambda **k: sm.complete(image(2)*0, mask, **k), lambda **k: sm.smooth.uniforms(2, **k)):
        assert torch.equal(call(seed=3), call(generator=gen())) and not torch.equal(call(seed=3), call(seed=4))
        with pytest.raises(ValueError, match='seed must be left out'): call(seed=3, generator=gen())
        with pytest.raises(ValueError, match='seed must be a whole number in'): call(seed=-1)
        with pytest.raises(TypeError, match='generator must be a torch.Generator, got 3: a number is a seed'): call(generator=3)
    assert as_generator() is None

@pytest.mark.parametrize('mask', [torch.eye(8), torch.eye(8).long(), torch.eye(8).double().expand(2, 1, 8, 8)])
def test_a_mask_may_be_of_zeros_and_ones(mask):
    sm, x = model(), image()
    assert torch.equal(sm.complete(x, mask, seed=0), sm.complete(x, torch.eye(8).bool(), seed=0))
    with pytest.raises(TypeError, match='mask must be a tensor of bools, or of 0 and 1'): sm.complete(x, mask*2)

def test_one_label_for_all():
    sm, x, three = SmoothedModel(net(n_classes=5), net(context_channels=1, n_classes=5), KERNEL).eval(), image(), torch.tensor([3, 3])
    assert_close(sm.sample(2, label=3, seed=0), sm.sample(2, label=three, seed=0))
    assert_close(sm.smooth.log_prob(x, label=3), sm.smooth.log_prob(x, label=three))
    assert_close(single_step(sm.smooth, x, .5, label=3), single_step(sm.smooth, x, .5, label=three))

def in_parts(**kw):
    "A network, its conditions for seven images, and the images"
    part = net(**kw).double()
    given = dict(context=image(7).double() if part.context_channels else None, label=torch.arange(7) % 5 if part.n_classes else None,
                 sigma=torch.linspace(.1, 1, 7) if part.sigma_range else None)
    return part, part.dist(**given), image(7).double()

@pytest.mark.parametrize('kw', [dict(), dict(context_channels=1), dict(n_classes=5), dict(sigma_range=(.1, 1.)), dict(context_channels=1, n_classes=5, sigma_range=(.1, 1.), head='discretized')], ids=str)
def test_batches_change_nothing(kw):
    "Neither likelihoods nor gradients, in the images and in the weights"
    part, dist, x = in_parts(**kw)
    def results(batch_size):
        part.zero_grad(set_to_none=True)
        x_ = x.clone().requires_grad_()
        nats = dist.log_prob(x_, batch_size)
        nats.square().sum().backward()
        with torch.no_grad(): assert torch.equal(dist.log_prob(x, batch_size), nats)
        return [nats.detach(), x_.grad, *[p.grad for p in part.parameters()], *[dist.score(x, batch_size)][:part.head == 'continuous']]
    whole = results(7)
    for size in (1, 3, 100): assert_close(results(size), whole, rtol=1e-9, atol=1e-9)
    if part.head == 'continuous' and not part.context_channels:
        steps = [single_step(part, x, dist.conditions.get('sigma', .5), s, b, label=dist.conditions.get('label')) for s in ('joint', 'local') for b in (2, 7)]
        assert_close(steps[0], steps[1], rtol=1e-9, atol=1e-9), assert_close(steps[2], steps[3], rtol=1e-9, atol=1e-9)
    for bad in (0, 1.5, -1):
        with pytest.raises(ValueError, match='batch_size must be a whole number of at least 1'): dist.log_prob(x, bad)

def test_batches_of_points_are_large():
    "As many rows as have 25,000 numbers: one pass of a network for points, however many"
    sizes = []
    in_batches(lambda dist, x: sizes.append(len(x)) or x[:, 0], None, None, torch.zeros(20_000, 1, 1, 2)), in_batches(lambda dist, x: sizes.append(len(x)) or x[:, 0], None, None, torch.zeros(70, 1, 28, 28))
    assert sizes == [12_500, 7_500, 31, 31, 8]

def test_nothing_is_kept_of_many_batches():
    "With gradients on, as whoever forgets `no_grad` has them: memory is that of one batch"
    part, kept = net(), {}
    for n in (4, 12):
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t): part.dist().log_prob(image(n), 4)
        kept[n] = sum(saved)
    assert kept[12] < kept[4]/5

def test_samples_of_an_exact_model_take_batches_too():
    data = SmoothedDataset(image(5), .5)
    assert_close(single_step(data, image(6)*1., .5, batch_size=4).shape, torch.Size([6, 1, 8, 8]))

def test_train_trains():
    model_ = net()
    before = model_.out.bias.clone()
    states = train(model_, image(8), smooth_objective(KERNEL), TrainConfig(steps=3, batch_size=4, init_batch=0))
    assert [s.step for s in states] == [1, 2, 3] and not torch.equal(model_.out.bias, before) and states[-1].ema is not model_
    steps = training_steps(net(), image(8), smooth_objective(KERNEL), TrainConfig(steps=10**9, batch_size=4, init_batch=0))
    assert [next(steps).step, next(steps).step] == [1, 2]

def test_models_can_be_copied_and_pickled():
    sm, u = model(), model().uniforms(2, seed=0)
    torch.save(sm, f := io.BytesIO()); f.seek(0)
    for other in (copy.deepcopy(sm), torch.load(f, weights_only=False)):
        assert other.kernel == sm.kernel and torch.equal(other.sample(uniforms=u), sm.sample(uniforms=u))

def test_a_compiled_model_is_compiled_in_its_likelihood():
    "`model.compile()` works in place, and is what `log_prob` calls"
    calls = []
    def backend(graph, inputs): calls.append(graph); return graph.forward
    part, x = MADE((1, 2), n_mix=1), torch.rand(2, 1, 1, 2)
    want = part.log_prob(x)
    part.compile(backend=backend)
    assert_close(part.log_prob(x), want)
    assert calls

# several processes

@posix
def test_torchrun_starts_the_processes_it_is_asked_for(tmp_path):
    "As documented; the bar says how many there are"
    settings = '--data.name digits --network.n_filters 4 --network.n_resnet 1 --network.n_mix 1 --train.steps 2 --train.batch_size 4 --train.init_batch 0 --log.samples 0 --log.test_images 2 --log.tensorboard false'
    command = [Path(sys.executable).parent/'torchrun', '--nproc_per_node', '2', '--master_port', '0', '--standalone', '-m', 'distsmooth', 'train', '--out', tmp_path/'r', *settings.split()]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {'ACCELERATE_USE_CPU': 'true', 'OMP_NUM_THREADS': '1'})
    assert done.returncode == 0, done.stderr
    assert 'training on 2 processes' in done.stderr and load_parts(tmp_path/'r')['smooth']
