"""The command, run as a user runs it."""
import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import get_args
import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close
import forks  # noqa: before anything trains, on the CPU
import distsmooth
from distsmooth import cli
from distsmooth.engine import bench
from distsmooth.autoregressive import METHODS
from distsmooth.cli import main, stages
from distsmooth.conditional import StackedPixelCNNpp
from distsmooth.denoising import single_step
from distsmooth.pipeline import SmoothedModel, load_parts, save_parts
from distsmooth.pixelcnn import PixelCNNpp
from distsmooth.engine.official import official_state
from distsmooth.engine.checkpoint import Checkpoints
from distsmooth.engine.experiment import recipe_names
from distsmooth.engine.shards import load_samples
from distsmooth.engine.terminal import leaves, options, plain_kind
from distsmooth.logistic import TRANSFORMS
from distsmooth.smoothing import GaussianKernel
from distsmooth.training import Trainer

assert forks.os.environ['ACCELERATE_USE_CPU']  # set before anything trains

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

def refused(*args):
    "The one line that a command ends in"
    with pytest.raises(SystemExit) as end: main(list(args))
    said = str(end.value)
    assert said.startswith('distsmooth: ') and len(said.strip().splitlines()) == 1
    return said

@pytest.mark.parametrize('command, names, says', [('demo', ['out', 'n', 'model', 'seed', 'batch_size'], 'How many digits'), ('train', ['out', 'resume', 'objective.sigma_range', 'train.lr', 'network.n_filters', 'log.every'], 'cifar10-smooth'),
                                                  ('sample', ['model', 'out', 'n', 'part', 'sigma', 'method'], 'started again, it goes on'), ('denoise', ['samples', 'out', 'how', 'score'], 'stage 2'),
                                                  ('import', ['checkpoint', 'stage', 'size'], 'published code'), ('pack', ['parts', 'out'], 'one model'), ('bench sampling', ['cases', 'methods', 'repeats', 'device', 'dtype', 'json'], 'cifar10:8')])
def test_help_names_every_argument(command, names, says, capsys):
    main([*command.split(), '--help', 'all'])
    text = capsys.readouterr().out
    for name in names: assert f'--{name}' in text
    assert says in ' '.join(text.split())

def test_bad_input_ends_in_one_clear_line_of_the_command_itself(tmp_path):
    done = command('demo', '--n', '0', '--out', str(tmp_path/'o'))
    assert done.returncode == 1 and done.stderr == 'distsmooth: n must be a whole number in [1, 1000000], got 0\n' and not list(tmp_path.iterdir())

@pytest.mark.parametrize('line, says', [
    ('demo --n many', "--n must be a whole number, got 'many'"), ('demo --sigma abc', "--sigma must be a number, got 'abc'"),
    ('demo --n 1 2', '--n takes one value, got 1 2'), ('train box-raw --out x', "--out is there twice: 'box-raw' stands for it, too"), ('demo --n', '--n needs a value, a whole number'), ('demo 3', "an option must come first"),
    ('paint', 'command must be one of demo, play, train'), ('', 'none was given'), ('trian', "did you mean 'train'?"), ('bench', 'bench command must be one of sampling, training'),
    ('train --out x --network.filters 3', 'did you mean --network.n_filters?'), ('train --out x --objective.part both', "--objective.part must be one of smooth, reverse, raw, got 'both'"),
    ('train --out x --recipe digits-smoth', "did you mean 'digits-smooth'?"), ('train --out x --recipe cats', '--recipe must be one of box-raw, box-reverse'), ('train --out x --recipe', '--recipe needs a value'),
    ('train --out x --train.betas 1', '--train.betas must be 2 numbers'), ('train --out x --train.steps 1.5', '--train.steps must be a whole number'), ('train --out x --config nothere', '--config must be a file that exists'),
    ('import --checkpoint x --out y --stage 3', '--stage must be one of 1, 2'), ('sample --out x', '--model is missing: A run'), ('sample --model digits', '--out is missing: Folder'),
    ('sample --model digits --out x --method magic', '--method must be one of cached, naive'), ('sample --model digits --out x --transform icfd', "did you mean 'icdf'?"),
    ('bench sampling --dtype float8', '--dtype must be one of float32, bfloat16'), ('bench sampling --device abacus', '--device must be one of cpu, cuda'),
], ids=lambda a: a[:40])
def test_what_was_not_meant_is_said_in_words(line, says, capsys):
    with pytest.raises(SystemExit) as end: main(line.split())
    said, usage = capsys.readouterr().err.strip().split('\nusage: ')
    assert end.value.code == 2 and says in said and '\n' not in said + usage and len(usage) < 160
    assert not re.search(r"<class|typing|Union|Literal|Optional|None\b|Namespace|Parser key|Traceback", said)

def test_help_is_quick_because_it_imports_no_torch():
    code = "import sys; from distsmooth.cli import COMMANDS, main; from distsmooth.engine.terminal import leaves\nmain(['-h'])\nfor name in leaves(COMMANDS): main([*name.split(), '-h'])\nprint(sorted({'torch', 'numpy', 'matplotlib', 'jsonargparse'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == '[]'

def test_help_fits_a_screen(capsys):
    for name in leaves(cli.COMMANDS):
        main([*name.split(), '-h'])
        text = capsys.readouterr().out
        assert 5 < len(text.splitlines()) < 40 and max(map(len, text.splitlines())) <= 100
    main(['-h'])
    assert all(f'\n  {name} ' in capsys_text for capsys_text in [capsys.readouterr().out] for name in leaves(cli.COMMANDS))

def test_version(capsys):
    main(['--version'])
    assert capsys.readouterr().out == f'distsmooth {distsmooth.__version__}\n'

def test_choices_and_groups_are_those_of_the_library():
    choices = {o.name: get_args(plain_kind(o.kind)) for o in options(cli.sample)}
    assert set(choices['method']) == set(METHODS) and set(choices['transform']) == set(TRANSFORMS)
    assert list(get_args(plain_kind(options(cli.train, deep=False)[1].kind))) == recipe_names()
    fields = {o.name for o in options(cli.train)}
    for o in options(cli.train, deep=False):
        named = re.findall(r'(?<= )(?:--\w+)?\.(\w+)', o.help) if isinstance(o.kind, str) else []
        assert {f'{o.name}.{n}' for n in named} <= fields and (named or not isinstance(o.kind, str))

def test_out_is_a_file(tmp_path):
    (tmp_path/'f').write_text('mine')
    assert 'out must be a folder' in refused('demo', '--out', str(tmp_path/'f')) and (tmp_path/'f').read_text() == 'mine'
    assert 'model name must be one of cifar10-16, digits' in refused('demo', '--model', 'cats', '--out', str(tmp_path/'o'))

@pytest.mark.parametrize('interrupted, kept', [(2, 2), (3, 4)], ids=['in the second batch', 'in the third batch'])
def test_ctrl_c_keeps_the_batches_that_are_done(small, tmp_path, monkeypatch, capsys, interrupted, kept):
    args = ['demo', '--model', small, '--n', '5', '--batch-size', '2', '--out']
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
    with pytest.raises(SystemExit, match='distsmooth: interrupted; what is complete is kept, nothing half-written is left'): main(['demo', '--model', small, '--n', '3', '--out', str(tmp_path)])
    assert not list(tmp_path.iterdir())

@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setitem(bench.NETWORKS, 'tiny', lambda: PixelCNNpp(size=8, n_filters=2, n_resnet=1, n_mix=1))

def test_bench_writes_its_figures(tiny, tmp_path, capsys):
    file = tmp_path/'figures.json'
    file.write_text('old')
    main(['bench', 'sampling', '--cases', 'tiny:2', 'tiny:3', '--methods', '["cached", "naive"]', '--repeats', '1', '--device', 'cpu', '--json', str(file)])
    result, printed = json.loads(file.read_text()), capsys.readouterr().out.splitlines()
    assert set(result) == {'machine', 'rows'} and result['machine']['dtype'] == 'float32'
    assert [(r['n'], r['method'], r['extrapolated']) for r in result['rows']] == [(n, m, e) for n in (2, 3) for m, e in (('naive', True), ('cached', False), ('naive', False))]
    assert all({'seconds', 'passes', 'ratio', 'images_per_second', 'hours_per_2000', 'peak_bytes', 'kept_bytes'} <= set(r) for r in result['rows'])
    assert printed[0] == bench.as_line() and printed[1:7] == [bench.as_line(r) for r in result['rows']]
    assert list(tmp_path.iterdir()) == [file]

def test_bench_in_half_the_bits(tiny, capsys):
    main(['bench', 'sampling', '--cases', '["tiny:1"]', '--methods', '[]', '--repeats', '1', '--device', 'cpu', '--dtype', 'bfloat16'])
    assert ', bfloat16\n' in capsys.readouterr().out

@pytest.mark.parametrize('args, says', [
    (['--cases', '["cats:2"]'], "cases must be like 'mnist:16'"),
    (['--cases', '["tiny:2", "tiny:none"]'], "got 'tiny:none'"),
    (['--cases', '["tiny:2"]', '--methods', '["magic"]'], "got 'magic'"),
    (['--cases', '["tiny:2"]', '--repeats', '0'], 'repeats must be a whole number of at least 1, got 0'),
], ids=['network', 'count', 'method', 'repeats'])
def test_bad_bench_ends_in_one_line_and_leaves_no_file(tiny, tmp_path, args, says, capsys):
    with pytest.raises(SystemExit) as end: main(['bench', 'sampling', *args, '--json', str(tmp_path/'f.json')])
    assert says in str(end.value) and str(end.value).startswith('distsmooth: ') and '\n' not in str(end.value)
    assert not list(tmp_path.iterdir()) and not capsys.readouterr().out

# train, sample, denoise, pack, import

TRAIN = ['--network', '{"n_filters": 2, "n_resnet": 1, "n_mix": 1, "dropout": 0}', '--train', '{"steps": 2, "batch_size": 4, "init_batch": 4}',
         '--log', '{"every": 1, "test_images": 3, "samples": 0, "save_every": 1, "tensorboard": false}', '--objective.sigma', '0.3']
def trained(out, *args): main(['train', '--out', str(out), *TRAIN, *args])

@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    "Two short runs: smooth and reverse"
    folder = tmp_path_factory.mktemp('runs')
    trained(folder/'s')
    trained(folder/'r', '--objective.part', 'reverse', '--network.head', 'discretized')
    return folder

def test_a_run_says_what_its_number_is_and_what_comes_next(runs, tmp_path, capsys):
    trained(tmp_path/'r', '--recipe', 'digits-raw', *TRAIN)
    said = capsys.readouterr().out
    nats, bits = map(float, re.search(r'test images: ([\d.-]+) nats/dim, ([\d.-]+) bits/dim \(8-bit images, exact\)', said).groups())
    assert bits == pytest.approx(nats/np.log(2), abs=2e-4) and f'wrote {tmp_path/"r"}' in said and 'next: distsmooth sample' in said

def test_from_runs_to_digits(runs, tmp_path, capsys):
    main(['sample', '--model', str(runs/'s'), '--out', str(tmp_path/'s'), '--n', '3', '--batch_size', '2'])
    assert f'3 images in 2 shards: {tmp_path/"s"}' in capsys.readouterr().out
    with Image.open(tmp_path/'s'/'samples.png') as im: assert im.width > 100
    x, sigma = load_samples(tmp_path/'s')
    assert x.shape == (3, 1, 28, 28) and sigma == .3
    main(['pack', '--parts', json.dumps([str(runs/'s'), str(runs/'r')]), '--out', str(tmp_path/'m')])
    assert 'GaussianKernel' in capsys.readouterr().out
    sm = SmoothedModel.from_pretrained(tmp_path/'m')
    assert sm.kernel == GaussianKernel(.3)
    for part, folder in (('smooth', 's'), ('reverse', 'r')):
        assert_close(dict(getattr(sm, part).state_dict()), dict(load_parts(runs/folder)[part].state_dict()), rtol=0, atol=0)
    x = torch.randn(3, 1, 28, 28)  # so short a run draws values that grow and grow: not what a way back could start from
    np.save(tmp_path/'x.npy', x)
    for how in ('two_step', 'single_step'): main(['denoise', '--samples', str(tmp_path/'x.npy'), '--model', str(tmp_path/'m'), '--out', str(tmp_path/how), '--how', how])
    assert torch.equal(load_samples(tmp_path/'single_step')[0], sm.denoise(x, 'single_step'))
    y = load_samples(tmp_path/'two_step')[0]
    assert y.shape == x.shape and ((y + 1)*127.5 - ((y + 1)*127.5).round()).abs().max() < 1e-3

def test_a_started_run_is_not_overwritten_but_resumed(runs):
    before = (runs/'s'/'log.csv').read_bytes()
    with pytest.raises(SystemExit, match='distsmooth: out holds a run at step 2 already'): trained(runs/'s')
    with pytest.raises(SystemExit, match='distsmooth: (?s:.*)train.lr: was 0.004, is 0.1'): trained(runs/'s', '--resume', 'true', '--train.lr', '0.1')
    trained(runs/'s', '--resume', 'true')
    assert (runs/'s'/'log.csv').read_bytes() == before

def test_a_bare_resume_takes_the_recipe_from_the_folder_and_steps_lengthen_it(runs, tmp_path, capsys):
    folder = shutil.copytree(runs/'s', tmp_path/'s')
    main(['train', '--out', str(folder), '--resume'])
    assert 'is at its end: --train.steps makes it longer' in capsys.readouterr().out
    main(['train', '--out', str(folder), '--resume', '--train.steps', '4'])
    said = capsys.readouterr().out
    assert 'a run of 2 steps goes on to 4: its cosine schedule is stretched, the learning rate of step 2 is 0.002 instead of' in said and f'wrote {folder}' in said
    log = (folder/'log.csv').read_text().splitlines()
    assert [line.split(',')[0] for line in log] == ['step', '1', '2', '3', '4'] and Checkpoints(folder/'checkpoints').steps == [2, 3, 4]
    assert 'steps must be at least the 4 that are done, got 3' in refused('train', '--out', str(folder), '--resume', '--train.steps', '3')
    main(['train', '--out', str(folder), '--resume'])
    assert 'is at its end' in capsys.readouterr().out

def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path, monkeypatch, capsys):
    long = ['--train.steps', '4', '--log.save_every', '100']
    trained(tmp_path/'whole', *long)
    advance = Trainer.advance
    def interrupted(self, batch=None):
        if self.step == 1: signal.raise_signal(signal.SIGINT)
        return advance(self, batch)
    monkeypatch.setattr(Trainer, 'advance', interrupted)
    with pytest.raises(SystemExit) as end: trained(tmp_path/'part', *long)
    assert 'step 2 of 4 is saved' in str(end.value) and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    again = shlex.split(str(end.value).partition('go on with: distsmooth ')[2])
    assert again[:3] == ['train', '--out', str(tmp_path/'part')] and again[-1] == '--resume'
    main(again)
    a, b = (load_parts(tmp_path/name)['smooth'].state_dict() for name in ('whole', 'part'))
    assert_close(dict(a), dict(b), rtol=0, atol=0)

def test_quiet(small, tmp_path, capfd, monkeypatch):
    draw = ['sample', '--model', small, '--n', '1', '--out']
    main([*draw, str(tmp_path/'a'), '--quiet'])
    trained(tmp_path/'b', '--quiet')
    said = capfd.readouterr()
    assert said.out == said.err == '' and (tmp_path/'a'/'samples.png').exists() and (tmp_path/'b'/'log.csv').exists()
    main([*draw, str(tmp_path/'c')])
    assert 'shards' in capfd.readouterr().err
    monkeypatch.setenv('TQDM_DISABLE', '1')
    main([*draw, str(tmp_path/'d')])
    said = capfd.readouterr()
    assert said.err == '' and '1 images in 1 shards' in said.out

def test_tensorboard_may_be_missing(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, 'torch.utils.tensorboard', None)
    trained(tmp_path/'r', '--log.tensorboard', 'true')
    assert 'TensorBoard is off' in capsys.readouterr().out and not (tmp_path/'r'/'tensorboard').exists()

def test_the_card_of_a_packed_model_says_what_and_how_good(runs, tmp_path, capsys):
    main(['pack', '--parts', str(runs/'s'), str(runs/'r'), '--out', str(tmp_path/'m')])
    assert re.search(r'smooth +PixelCNNpp +1x28x28 +continuous', capsys.readouterr().out)
    card, last = (tmp_path/'m'/'README.md').read_text(), (runs/'s'/'log.csv').read_text().splitlines()[-1].split(',')
    assert 'More Information Needed' not in card and '| smooth | digits | GaussianKernel 0.3 | 2 | 4 | 0 |' in card
    assert f'| smooth | 2 | {last[3]} | {last[4]} | density of smoothed images' in card and '| reverse | 2 |' in card
    main(['pack', '--parts', str(tmp_path/'m'), '--out', str(tmp_path/'again')])  # recipes and logs went along
    assert (tmp_path/'again'/'README.md').read_text().replace('again', 'm') == card.replace('again', 'm')
    (tmp_path/'m'/'README.md').write_text('mine')
    main(['pack', '--parts', str(runs/'s'), str(runs/'r'), '--out', str(tmp_path/'m')])
    assert (tmp_path/'m'/'README.md').read_text() == 'mine'

def test_lab_copies_the_notebooks_once(tmp_path, capsys):
    main(['lab', '--out', str(tmp_path/'n'), '--open', 'false'])
    assert (tmp_path/'n'/'course'/'01_toys.ipynb').stat().st_size > 1e5 and 'begin with' in capsys.readouterr().out
    (tmp_path/'n'/'index.ipynb').write_text('mine')
    main(['lab', '--out', str(tmp_path/'n'), '--open', 'false'])
    assert (tmp_path/'n'/'index.ipynb').read_text() == 'mine'

def test_lab_without_solutions(tmp_path):
    "A class gets the questions; the outputs, and all that is not folded, stay"
    main(['lab', '--out', str(tmp_path/'n'), '--open', 'false', '--solutions', 'false'])
    copied = sorted((tmp_path/'n').rglob('*.ipynb'))
    assert len(copied) > 20
    for p in copied:
        new, old = (json.loads((d/p.relative_to(tmp_path/'n')).read_text(encoding='utf8')) for d in (tmp_path/'n', cli._notebooks()))
        assert '<details>' not in ''.join(''.join(c['source']) for c in new['cells'] if c['cell_type'] == 'markdown')
        assert [c for c in new['cells'] if c['cell_type'] == 'code'] == [c for c in old['cells'] if c['cell_type'] == 'code']
    sheet = (tmp_path/'n'/'engine'/'exercises.ipynb').read_text(encoding='utf8')
    assert 'Variances' not in sheet.split('## What to keep')[0] and 'What is the density of the *smoothed* data' in sheet

def test_completion(capsys):
    pytest.importorskip('shtab')
    main(['completion', '--shell', 'bash'])
    script = capsys.readouterr().out
    assert all(word in script for word in ('denoise', 'bench', '--train.lr', 'digits-smooth'))
    assert subprocess.run(['bash', '-n'], input=script, text=True).returncode == 0

@pytest.mark.parametrize('wrap', [lambda s: [{f'module.{k}': v for k, v in s.items()}, {'step': 3}], lambda s: s], ids=['published', 'plain'])
@pytest.mark.parametrize('stage', [1, 2])
def test_import_gives_the_same_likelihoods(stage, wrap, tmp_path):
    net = PixelCNNpp(1, (8*stage, 8), 3, 1, 2).eval() if stage == 1 else StackedPixelCNNpp(1, 8, 3, 1, 2).eval()
    torch.save(wrap(official_state(net if stage == 1 else net.net)), tmp_path/'checkpoint.pth')
    main(['import', '--checkpoint', str(tmp_path/'checkpoint.pth'), '--out', str(tmp_path/'m'), '--stage', str(stage), '--size', '8', '--sigma', '0.5'])
    parts = load_parts(tmp_path/'m')
    assert parts['kernel'] == GaussianKernel(.5) and set(parts) == {'kernel', ('smooth', 'reverse')[stage-1]}
    x, told = torch.randn(3, 1, 8, 8), {} if stage == 1 else dict(context=torch.randn(3, 1, 8, 8))
    again = parts[('smooth', 'reverse')[stage-1]]
    assert type(again) is type(net)
    assert torch.equal(again.log_prob(x, **told), net.log_prob(x, **told))

# one line for every fault

@pytest.mark.parametrize('args, says', [
    (['train', '--train.lr', '0'], 'lr must be a number above 0, got 0.0'),
    (['train', '--objective.sigma', '-1'], 'sigma must be a number above 0, got -1.0'),
    (['train', '--objective.sigma_range', '[1, 0.1]'], 'sigma_range must be (lowest, highest)'),
    (['train', '--data.name', 'cats'], 'name must be one of'),
    (['train', '--network.head', 'discretized'], "head must be 'continuous'"),
    (['train', '--resume', 'true'], 'no checkpoint in'),
    (['sample', '--model', 'cats'], 'name must be one of'),
    (['demo', '--n', '99999999999999999999999'], 'n must be a whole number in [1, 1000000], got 99999999999999999999999'),
    (['demo', '--seed', str(2**64)], 'seed must be a whole number in [0, 18446744073709551616)'),
    (['demo', '--sigma', '7'], 'sigma must lie in'),
    (['sample', '--model', '{small}', '--n', '0'], 'n must be a whole number in [1, 1000000], got 0'),
    (['sample', '--model', '{small}', '--batch_size', '0'], 'batch_size must be'),
    (['sample', '--model', '{small}', '--n', '1', '--label', '3'], 'label must be None'),
    (['sample', '--model', '{small}', '--part', 'raw'], 'must hold raw'),
    (['sample', '--model', '{small}', '--n', '1', '--temperature', '0'], 'temperature'),
    (['denoise', '--samples', 'none'], 'samples must be a folder or a file that exists'),
    (['import', '--checkpoint', 'none'], 'none'),
    (['pack', '--parts', '[]'], 'at least one folder'),
    (['pack', '--parts', '["none"]'], 'name must be one of'),
], ids=lambda a: '-'.join(a[:2]) if isinstance(a, list) else '')
def test_one_line_for_every_fault(args, says, small, tmp_path):
    assert says in refused(*[a.format(small=small) if a == '{small}' else a for a in args], '--out', str(tmp_path/'o'))
    assert not [p for p in tmp_path.rglob('*') if p.is_file()]

def test_a_refused_sample_does_not_spoil_its_folder(small, tmp_path):
    args = ['sample', '--model', small, '--out', str(tmp_path/'o'), '--n', '1']
    refused(*args, '--temperature', '0')
    main(args)
    assert load_samples(tmp_path/'o')[0].shape == (1, 1, 28, 28)

@pytest.mark.parametrize('name', ['a.npz', 'a.npy', 'a.pth', 'text.npz', 'text.npy', 'text.pth'])
def test_damaged_samples(name, small, tmp_path):
    path, x = tmp_path/name, np.zeros((2, 1, 28, 28), np.float32)
    if path.suffix == '.npz': np.savez(path, x=x)
    elif path.suffix == '.npy': np.save(path, x)
    else: torch.save(torch.from_numpy(x), path)
    path.write_bytes(b'no images here' if path.stem == 'text' else path.read_bytes()[:1000])
    with pytest.raises(SystemExit) as end: main(['denoise', '--samples', str(path), '--model', small, '--out', str(tmp_path/'o')])
    assert str(end.value).startswith('distsmooth: ')

def test_a_damaged_checkpoint_of_the_published_code(tmp_path):
    (tmp_path/'c.pth').write_text('no weights here')
    with pytest.raises(SystemExit) as end: main(['import', '--checkpoint', str(tmp_path/'c.pth'), '--out', str(tmp_path/'o')])
    assert str(end.value).startswith('distsmooth: ') and not (tmp_path/'o').exists()

def test_pack_needs_a_smooth_network_and_one_kernel(runs, tmp_path):
    assert 'smooth' in refused('pack', '--parts', json.dumps([str(runs/'r')]), '--out', str(tmp_path/'m'))
    save_parts(tmp_path/'other', GaussianKernel(.7), smooth=PixelCNNpp(size=28, n_filters=2, n_resnet=1, n_mix=1))
    said = refused('pack', '--parts', json.dumps([str(tmp_path/'other'), str(runs/'r')]), '--out', str(tmp_path/'m'))
    assert '0.7' in said and '0.3' in said and not (tmp_path/'m').exists()
