"Data sets and folders: shapes, scales, splits and faults."
import os
import subprocess, sys
import numpy as np
import urllib.request
import pytest
import torch
from hypothesis import given, strategies as st
from PIL import Image
from torch.testing import assert_close
from torchvision import datasets
import distsmooth.data as data
from distsmooth.data import DIGITS, Folder, Images, celeba, data_root, load_dataset, to_bytes, to_unit

def png(path, h=20, w=30, seed=0, mode='RGB'):
    "A small image file of random pixels; returns them"
    shape = (h, w, 3) if mode == 'RGB' else (h, w)
    pixels = np.random.RandomState(seed).randint(0, 256, shape).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return pixels

# --- the scale

@given(st.lists(st.integers(0, 255), min_size=1, max_size=50))
def test_bytes_round_trip(levels):
    b = torch.tensor(levels, dtype=torch.uint8)
    x = to_unit(b)
    assert x.dtype == torch.float32 and x.min() >= -1 and x.max() <= 1
    assert torch.equal(to_bytes(x), b)

def test_scale_is_linear_and_ends_at_the_ends():
    x = to_unit(torch.arange(256, dtype=torch.uint8))
    assert x[0] == -1 and x[255] == 1
    assert_close(x.double(), torch.linspace(-1, 1, 256, dtype=torch.float64), atol=1e-6, rtol=0)

def test_scaling_twice_is_refused():
    with pytest.raises(ValueError, match='uint8.*float32'): to_unit(to_unit(torch.zeros(3, dtype=torch.uint8)))

# --- digits

def test_digits_are_mnist():
    for split, n in (('train', 10000), ('test', 2000)):
        ds = load_dataset('digits', split)
        assert len(ds) == n and ds.labels.bincount().tolist() == [n//10]*10
        x, label = ds[0]
        assert x.shape == (1, 28, 28) and x.dtype == torch.float32 and x.min() == -1 and x.max() == 1 and label.dtype == torch.int64
    assert load_dataset('digits').labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4] # the well-known beginning of MNIST

def test_train_and_test_digits_do_not_overlap():
    flat = lambda split: {p.numpy().tobytes() for p in load_dataset('digits', split).pixels}
    assert not flat('train') & flat('test')

def test_digits_need_no_root_and_no_network(tmp_path):
    code = ("import socket\ndef no(*a, **k): raise OSError('network')\nsocket.socket.connect = no\n"
            "from distsmooth.data import load_dataset\nprint(load_dataset('digits', 'test'))")
    env = {**os.environ, 'DISTSMOOTH_DATA': str(tmp_path/'nothing'), 'HOME': str(tmp_path)}
    out = subprocess.run([sys.executable, '-c', code], env=env, cwd=tmp_path, capture_output=True, text=True)
    assert out.stdout.strip() == 'Images(2000 of (1, 28, 28))', out.stderr
    assert not any(tmp_path.iterdir())

def test_missing_digits_say_how_to_make_them(monkeypatch, tmp_path):
    monkeypatch.setattr(data, 'DIGITS', tmp_path/'digits.npz')
    with pytest.raises(FileNotFoundError, match='pack_digits'): load_dataset('digits')

def test_bundled_file_is_small(): assert DIGITS.stat().st_size < 3e6

# --- Images

@pytest.mark.parametrize('shape,channels', [((5, 4, 6), 1), ((5, 4, 6, 3), 3)])
def test_images_layout(shape, channels):
    pixels = np.random.RandomState(0).randint(0, 256, shape).astype(np.uint8)
    ds = Images(pixels, range(5))
    assert len(ds) == 5 and ds[0][0].shape == (channels, 4, 6)
    for c in range(channels):
        assert torch.equal(ds.pixels[:, c], torch.tensor(pixels if channels == 1 else pixels[..., c]))
    x, labels = ds[1:4]
    assert labels.tolist() == [1, 2, 3]
    assert torch.equal(x, torch.stack([ds[i][0] for i in (1, 2, 3)]))
    assert torch.equal(ds.x, ds[:][0]) and torch.equal(ds[[4, 0]][0], ds.x[[4, 0]])

@pytest.mark.parametrize('pixels,message', [(np.zeros((2, 3, 3)), 'uint8'), (np.zeros((3, 3), np.uint8), r'\(3, 3\)'), (np.zeros((3, 4, 4), np.uint8), '3 and 2')])
def test_images_faults(pixels, message):
    with pytest.raises(ValueError, match=message): Images(pixels, [0, 1])

# --- where data sets are

def test_data_root_order(monkeypatch, tmp_path):
    monkeypatch.setenv('DISTSMOOTH_DATA', str(tmp_path/'env'))
    assert data_root(tmp_path/'arg') == tmp_path/'arg' and data_root() == tmp_path/'env'
    monkeypatch.delenv('DISTSMOOTH_DATA')
    monkeypatch.setenv('HOME', str(tmp_path))
    assert data_root() == tmp_path/'.cache'/'distsmooth'

@pytest.mark.parametrize('name', ['mnist', 'fashion_mnist', 'cifar10', 'celeba'])
def test_missing_data_set_says_what_where_and_two_ways(name, tmp_path):
    with pytest.raises(FileNotFoundError) as e: load_dataset(name, 'test', root=tmp_path/'here')
    text = str(e.value)
    for part in (name, str(tmp_path/'here'), f"load_dataset('{name}', 'test', download=True)", 'DISTSMOOTH_DATA', "'digits'"): assert part in text
    assert not (tmp_path/'here').exists()

@pytest.mark.parametrize('name', ['mnist', 'cifar10'])
def test_no_network_is_a_clear_error(name, tmp_path, monkeypatch):
    for key in ('http_proxy', 'https_proxy', 'HTTP_PROXY', 'HTTPS_PROXY'): monkeypatch.setenv(key, 'http://127.0.0.1:9') # a port where nobody listens
    for key in ('no_proxy', 'NO_PROXY'): monkeypatch.delenv(key, raising=False)
    monkeypatch.setattr(urllib.request, '_opener', None)  # it keeps the proxies of the first call
    with pytest.raises(FileNotFoundError, match='fetching them failed.*network'): load_dataset(name, root=tmp_path, download=True)

def test_damaged_files_are_a_clear_error(tmp_path):
    raw = tmp_path/'MNIST'/'raw'; raw.mkdir(parents=True)
    for part in ('train', 't10k'):
        for kind in ('images-idx3', 'labels-idx1'): (raw/f'{part}-{kind}-ubyte').write_bytes(b'half')
    with pytest.raises(FileNotFoundError, match='damaged'): load_dataset('mnist', root=tmp_path)

@pytest.mark.parametrize('name', ['digits', 'mnist', 'celeba', '.'])
@pytest.mark.parametrize('split', ['valid', 'Train', None, 0])
def test_wrong_split(name, split):
    with pytest.raises(ValueError, match='split.*' + repr(split)): load_dataset(name, split)

@pytest.mark.parametrize('name', ['imagenet', 'MNIST', '', '/no/such/folder', None, 3])
def test_unknown_name(name):
    with pytest.raises(ValueError, match='name must be one of'):
        load_dataset(name if name != '' else '/no/such/folder/')

@pytest.mark.parametrize('size', [0, -1, 2.5, None])
def test_wrong_size(size, tmp_path):
    png(tmp_path/'a.png')
    with pytest.raises(ValueError, match='size'): load_dataset(tmp_path, size=size)

# --- the real data sets, where there are any

def real(name, split):
    if not os.environ.get('DISTSMOOTH_DATA'): pytest.skip('set DISTSMOOTH_DATA to a folder with the real data sets to run this test')
    try: return load_dataset(name, split)
    except FileNotFoundError as e: pytest.skip(str(e))

@pytest.mark.parametrize('name,shape,n', [('mnist', (1, 28, 28), (60000, 10000)), ('fashion_mnist', (1, 28, 28), (60000, 10000)), ('cifar10', (3, 32, 32), (50000, 10000))])
@pytest.mark.parametrize('split', ['train', 'test'])
def test_real_data_sets(name, shape, n, split):
    ds = real(name, split)
    assert len(ds) == n[split == 'test']
    x, labels = ds[:100]
    assert x.shape == (100, *shape) and x.dtype == torch.float32 and -1 <= x.min() < -.5 and .5 < x.max() <= 1
    assert sorted(ds.labels.unique().tolist()) == list(range(10))

@pytest.mark.parametrize('split', ['train', 'test'])
def test_digits_are_the_first_of_each_class(split):
    ds, digits = real('mnist', split), load_dataset('digits', split)
    for c in range(10):
        mine = digits.pixels[digits.labels == c]
        assert torch.equal(mine, ds.pixels[ds.labels == c][:len(mine)])

def test_real_celeba():
    ds = real('celeba', 'test')
    assert len(ds) == int(202599*.8) - int(202599*.7) and ds[0][0].shape == (3, 32, 32)

# --- CelebA's path, on a small folder laid out as torchvision wants it

@pytest.fixture
def fake_celeba(tmp_path, monkeypatch):
    "Ten images and torchvision's lists; its md5 sums cannot match, so that check is left out"
    base, n = tmp_path/'celeba', 10
    names = [f'{i:06d}.jpg' for i in range(1, n + 1)]
    photos = [png((base/'img_align_celeba'/name).with_suffix('.png'), 218, 178, seed=i) for i, name in enumerate(names)]
    for name in names: (base/'img_align_celeba'/name).with_suffix('.png').rename(base/'img_align_celeba'/name) # lossless, whatever the suffix says
    lines = lambda row: '\n'.join(f'{name} {row}' for name in names)
    (base/'list_eval_partition.txt').write_text(lines('0'))
    (base/'identity_CelebA.txt').write_text(lines('7'))
    for file, columns in (('list_bbox_celeba.txt', 4), ('list_landmarks_align_celeba.txt', 10), ('list_attr_celeba.txt', 40)):
        (base/file).write_text(f'{n}\n{" ".join(f"c{i}" for i in range(columns))}\n' + lines(' '.join(['1']*columns)))
    monkeypatch.setattr(datasets.CelebA, '_check_integrity', lambda self: True)
    return tmp_path, photos

def test_celeba_crop_resize_and_split(fake_celeba):
    root, photos = fake_celeba
    train, test = (load_dataset('celeba', split, root=root) for split in ('train', 'test'))
    assert (len(train), len(test)) == (7, 1)
    order = list(range(10)); np.random.RandomState(2020).shuffle(order)
    for i, j in enumerate(order[:8]):
        x, attributes = train[i] if i < 7 else test[0]
        reference = Image.fromarray(photos[j]).crop((19, 39, 159, 179)).resize((32, 32), Image.BILINEAR)
        assert_close(x, to_unit(torch.tensor(np.array(reference)).permute(2, 0, 1)))
        assert attributes.shape == (40,)
    assert celeba(root, 'test', size=64)[0][0].shape == (3, 64, 64)
    with pytest.raises(ValueError, match='split'): celeba(root, 'all')

@given(st.integers(10, 3000))
def test_celeba_split_is_disjoint(n):
    a, b = data._celeba_split(n, 'train'), data._celeba_split(n, 'test')
    assert len(a) == int(n*.7) and len(b) == int(n*.8) - int(n*.7) and not set(a) & set(b)

# --- folders

def test_folder_is_cropped_resized_and_scaled(tmp_path):
    pixels = png(tmp_path/'wide.png', 20, 30)
    x, label = load_dataset(tmp_path, size=20)[0]
    assert label == 0 and x.dtype == torch.float32
    assert torch.equal(to_bytes(x), torch.tensor(pixels[:, 5:25]).permute(2, 0, 1))
    assert load_dataset(str(tmp_path), size=8)[0][0].shape == (3, 8, 8)

@pytest.mark.parametrize('n', [1, 9, 10, 25])
def test_folder_split(tmp_path, n):
    for i in range(n): png(tmp_path/f'{i:03d}'/'a.png', 4, 4, seed=i)
    train, test = Folder(tmp_path, 'train', 4), Folder(tmp_path, 'test', 4)
    if n < 10: assert train.files == test.files and len(train) == n
    else:
        assert len(test) == n//10 and len(train) + len(test) == n and not set(train.files) & set(test.files)

def test_folder_takes_all_kinds_of_files(tmp_path):
    for kind in ('png', 'JPG', 'bmp', 'gif', 'webp', 'tiff'): png(tmp_path/f'a.{kind}')
    png(tmp_path/'sub'/'grey.png', mode='L'); (tmp_path/'notes.txt').write_text('not an image')
    Image.new('RGBA', (9, 9), (255, 0, 0, 128)).save(tmp_path/'clear.png')
    ds = Folder(tmp_path, size=8)
    assert len(ds) == 8
    for x, _ in (ds[i] for i in range(8)): assert x.shape == (3, 8, 8) and x.isfinite().all() and x.abs().max() <= 1

def test_folder_faults(tmp_path):
    with pytest.raises(FileNotFoundError, match='no images below'): load_dataset(tmp_path)
    (tmp_path/'broken.png').write_bytes(b'\x89PNG\r\n half')
    with pytest.raises(ValueError, match='cannot read the image .*broken.png'): load_dataset(tmp_path)[0]
    with pytest.raises(FileNotFoundError, match='no folder at'): Folder(tmp_path/'nowhere')

def test_folder_of_a_data_sets_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    from pathlib import Path
    png(tmp_path/'digits'/'a.png')
    assert len(load_dataset('digits', 'test')) == 2000
    assert len(load_dataset(Path('digits'))) == len(load_dataset('./digits')) == 1

# averaged

def test_averages_are_to_the_nearest_level_and_a_half_goes_up():
    pixels = np.array([[[0, 1], [1, 0]], [[0, 1], [1, 1]], [[7, 8], [8, 8]], [[255, 255], [255, 254]]], np.uint8)
    small = data._average(Images(np.stack([pixels]*3, -1), range(4)), 1)
    assert small.pixels.flatten(1).tolist() == [[v]*3 for v in (1, 1, 8, 255)] and small.pixels.dtype == torch.uint8 and small.labels.tolist() == [0, 1, 2, 3]

@pytest.mark.parametrize('size', [3, 64])
def test_a_size_that_does_not_divide(size):
    with pytest.raises(ValueError, match=f'size must divide 8, the side of these images, got {size}'):
        data._average(Images(np.zeros((2, 8, 8, 3), np.uint8), [0, 1]), size)
