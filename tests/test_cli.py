"""The command, run as a user runs it."""
import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
import numpy as np
import pytest
import torch
from PIL import Image
from distsmooth import bench, cli
from distsmooth.cli import main, stages
from distsmooth.denoising import single_step
from distsmooth.pipeline import SmoothedModel
from distsmooth.pixelcnn import PixelCNNpp
from distsmooth.smoothing import GaussianKernel

@pytest.fixture(scope='module')
def small(tmp_path_factory):
    "A saved model of 28x28 digits that is as quick as such a model can be"
    torch.manual_seed(0)
    net = dict(size=28, n_filters=2, n_resnet=1, n_mix=1)
    folder = tmp_path_factory.mktemp('small')
    SmoothedModel(PixelCNNpp(**net), PixelCNNpp(**net, head='discretized', context_channels=1), GaussianKernel(0.5)).save_pretrained(folder)
    return str(folder)

def command(*args):
    exe = Path(sys.executable).parent/'distsmooth'
    return subprocess.run([str(exe) if exe.exists() else shutil.which('distsmooth'), *args], capture_output=True, text=True)

@pytest.fixture(scope='module')
def out(small, tmp_path_factory):
    folder = tmp_path_factory.mktemp('run')/'made'/'here'
    done = command('demo', '--model', small, '--n', '3', '--out', str(folder))
    assert done.returncode == 0, done.stderr
    return done, folder

def test_demo_writes_picture_and_arrays(out):
    done, folder = out
    assert {p.name for p in folder.iterdir()} == {'demo.png', 'samples.npz'}
    with np.load(folder/'samples.npz') as f: arrays = dict(f)
    for name in ('clean', 'smoothed', 'single_step', 'two_step'):
        assert arrays[name].shape == (3, 1, 28, 28) and arrays[name].dtype == np.float32 and abs(arrays[name]).max() <= 1
    assert abs(arrays['clean'] - np.round((arrays['clean']+1)*127.5)/127.5 + 1).max() < 1e-5
    with Image.open(folder/'demo.png') as im: assert im.width > 200 and im.height > 200

def test_demo_shows_progress_and_says_what_to_open(out):
    done, folder = out
    assert re.search(r'\d+ s in all', done.stdout) and 'demo.png' in done.stdout and 'next:' in done.stdout
    assert 'rows' in done.stderr

def test_arrays_belong_together(out, small):
    with np.load(out[1]/'samples.npz') as f: raw, single = torch.as_tensor(f['smoothed_unclipped']), torch.as_tensor(f['single_step'])
    sm = SmoothedModel.from_pretrained(small)
    torch.testing.assert_close(single_step(sm.smooth, raw, 0.5).clamp(-1, 1), single, rtol=1e-4, atol=1e-4)

def test_batches_do_not_change_the_shape(small, tmp_path):
    main(['demo', '--model', small, '--n', '3', '--batch_size', '2', '--out', str(tmp_path)])
    with np.load(tmp_path/'samples.npz') as f: assert f['two_step'].shape == (3, 1, 28, 28)

def test_stages_are_repeatable(small):
    sm = SmoothedModel.from_pretrained(small)
    a, b = (stages(sm, 1, torch.Generator().manual_seed(7)) for _ in range(2))
    for k in a: torch.testing.assert_close(a[k], b[k], rtol=0, atol=0)

def test_help_names_every_argument():
    text = command('demo', '--help').stdout
    for name in ('--out', '--n', '--model', '--seed', '--batch_size'): assert name in text
    assert 'How many digits' in text

@pytest.mark.parametrize('args, says', [
    (['demo', '--n', '0'], 'n and batch_size must be at least 1'),
    (['demo', '--model', 'cats'], 'name must be one of'),
    (['demo', '--n', 'many'], '--n'),
    (['paint'], 'demo'),
], ids=['none', 'model', 'not a number', 'unknown command'])
def test_bad_input_ends_in_one_clear_line(args, says, tmp_path):
    done = command(*args, *(['--out', str(tmp_path/'o')] if args[0] == 'demo' else []))
    assert done.returncode != 0 and says in done.stderr and 'Traceback' not in done.stderr

def test_out_is_a_file(tmp_path):
    (tmp_path/'f').write_text('mine')
    done = command('demo', '--out', str(tmp_path/'f'))
    assert done.returncode != 0 and 'out must be a folder' in done.stderr and (tmp_path/'f').read_text() == 'mine'

@pytest.mark.parametrize('interrupted, kept', [(2, 2), (3, 4)], ids=['in the second batch', 'in the third batch'])
def test_ctrl_c_keeps_the_batches_that_are_done(small, tmp_path, monkeypatch, capsys, interrupted, kept):
    args = ['demo', '--model', small, '--n', '5', '--batch_size', '2', '--out']
    main([*args, str(tmp_path/'whole')])
    begun = []
    def stages_until(*a, **k):
        begun.append(a)
        if len(begun) == interrupted: signal.raise_signal(signal.SIGINT)
        return stages(*a, **k)
    monkeypatch.setattr(cli, 'stages', stages_until)
    main([*args, str(tmp_path/'part')])
    assert f'interrupted: keeping {interrupted - 1} of 3 batches' in capsys.readouterr().out
    assert {p.name for p in (tmp_path/'part').iterdir()} == {'demo.png', 'samples.npz'}
    with np.load(tmp_path/'whole'/'samples.npz') as whole, np.load(tmp_path/'part'/'samples.npz') as part:
        assert all(len(v) == kept for v in part.values())
        for name in ('clean', 'smoothed_unclipped', 'single_step', 'two_step'): np.testing.assert_array_equal(part[name], whole[name][:kept])

def test_ctrl_c_in_the_first_batch_writes_nothing(small, tmp_path, monkeypatch):
    monkeypatch.setattr(cli, 'stages', lambda *a, **k: signal.raise_signal(signal.SIGINT))
    with pytest.raises(SystemExit, match='interrupted, nothing was written'): main(['demo', '--model', small, '--n', '3', '--out', str(tmp_path)])
    assert not list(tmp_path.iterdir())

@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setitem(bench.NETWORKS, 'tiny', lambda: PixelCNNpp(size=8, n_filters=2, n_resnet=1, n_mix=1))

def test_bench_writes_its_figures(tiny, tmp_path, capsys):
    file = tmp_path/'figures.json'
    file.write_text('old')
    main(['bench', 'sampling', '--cases', '["tiny:2", "tiny:3"]', '--methods', '["cached", "naive"]', '--repeats', '1', '--device', 'cpu', '--json', str(file)])
    result, printed = json.loads(file.read_text()), capsys.readouterr().out.splitlines()
    assert set(result) == {'machine', 'rows'} and result['machine']['dtype'] == 'float32'
    assert [(r['n'], r['method'], r['extrapolated']) for r in result['rows']] == [(n, m, e) for n in (2, 3) for m, e in (('naive', True), ('cached', False), ('naive', False))]
    assert all({'seconds', 'passes', 'ratio', 'images_per_second', 'hours_per_2000', 'peak_bytes', 'kept_bytes'} <= set(r) for r in result['rows'])
    assert printed[0] == bench.as_line() and printed[1:7] == [bench.as_line(r) for r in result['rows']]
    assert list(tmp_path.iterdir()) == [file]

def test_bench_in_half_the_bits(tiny, capsys):
    main(['bench', 'sampling', '--cases', '["tiny:1"]', '--methods', '[]', '--repeats', '1', '--device', 'cpu', '--dtype', 'bfloat16'])
    assert "'dtype': 'bfloat16'" in capsys.readouterr().out

@pytest.mark.parametrize('args, says', [
    (['--cases', '["cats:2"]'], "cases must be like 'mnist:16'"),
    (['--cases', '["tiny:2", "tiny:none"]'], "got 'tiny:none'"),
    (['--cases', '["tiny:2"]', '--methods', '["magic"]'], "got 'magic'"),
    (['--cases', '["tiny:2"]', '--repeats', '0'], 'repeats must be at least 1, got 0'),
    (['--cases', '["tiny:2"]', '--device', 'abacus'], "device must be 'cpu'"),
    (['--cases', '["tiny:2"]', '--dtype', 'float8'], "dtype must be one of ['float32', 'bfloat16'], got 'float8'"),
], ids=['network', 'count', 'method', 'repeats', 'device', 'dtype'])
def test_bad_bench_ends_in_one_line_and_leaves_no_file(tiny, tmp_path, args, says):
    with pytest.raises(SystemExit) as end: main(['bench', 'sampling', *args, '--json', str(tmp_path/'f.json')])
    assert says in str(end.value) and str(end.value).startswith('distsmooth: ') and '\n' not in str(end.value)
    assert not list(tmp_path.iterdir())

def test_bench_help_names_every_argument(capsys):
    with pytest.raises(SystemExit): main(['bench', 'sampling', '--help'])
    text = capsys.readouterr().out
    for name in ('--cases', '--methods', '--repeats', '--device', '--dtype', '--json'): assert name in text
