"""A run in a folder: killed, resumed, refused, written down, and the same on one process or two; and the published recipes."""
import csv
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
import pytest
import torch
import yaml
from torch.testing import assert_close
from forks import fork, in_child, posix, together, wait
from distsmooth.engine import experiment
from distsmooth.engine.checkpoint import Checkpoints
from distsmooth.cli import main
from distsmooth.pipeline import load_parts
from distsmooth.pixelcnn import PixelCNNpp
from distsmooth.engine.experiment import COLUMNS, CSVLog, Data, Experiment, Log, Network, Recipe, Objective, evaluate, fit, quantity, recipe_names, sample_grid
from distsmooth.smoothing import GaussianKernel, LaplaceKernel
from distsmooth.training import Trainer, TrainConfig, make_generator, raw_objective, reverse_objective, smooth_objective

NETWORK = Network(n_filters=4, n_resnet=1, n_mix=1, dropout=.5)
TRAIN = TrainConfig(steps=6, batch_size=4, init_batch=8, warmup=2, ema=.5)
LOG = Log(every=1, test_every=0, test_images=3, sample_every=0, samples=0, save_every=2, keep=2, tensorboard=False)
TINY = Recipe(network=NETWORK, train=TRAIN, log=LOG)
def tiny(**kwargs):
    "The tiny recipe with other fields, wherever they belong"
    fields = {name: {k: v for k, v in kwargs.items() if k in asdict(part)} for name, part in vars(TINY).items()}
    assert sum(map(len, fields.values())) == len(kwargs)
    return Recipe(**{name: replace(getattr(TINY, name), **new) for name, new in fields.items()})

def lines(out): return list(csv.DictReader((Path(out)/'log.csv').read_text().splitlines()))
def without_speed(out): return [{k: v for k, v in row.items() if k != 'images_per_second'} for row in lines(out)]
def files(folder): return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(Path(folder).rglob('*')) if p.is_file() and p.name != '.lock'}

class Stop(Exception): pass

def stopped(out, at, recipe=TINY):
    "A run that ends after `at` steps, as if its process had died"
    f = Experiment(recipe, out)
    advance = f.run.advance
    def until(batch):
        if f.run.step == at: raise Stop
        return advance(batch)
    f.run.advance = until
    with f.checkpoints, pytest.raises(Stop): f.go(progress=False)
    return f

@pytest.fixture(scope='module')
def done(tmp_path_factory):
    "A finished run of the tiny recipe; its last log-likelihood"
    out = tmp_path_factory.mktemp('runs')/'done'
    return out, fit(tiny(samples=2), out, progress=False)

# what is written down

def test_the_speed_is_that_since_the_line_before(tmp_path):
    "A slow first step slows the first line alone, so the lines' times make up the run's"
    f = Experiment(TINY, tmp_path/'run')
    advance = f.run.advance
    def slow(batch):
        if f.run.step == 0: time.sleep(1)
        return advance(batch)
    f.run.advance = slow
    start = time.perf_counter()
    with f.checkpoints: f.go(progress=False)
    seconds = [4/float(row['images_per_second']) for row in lines(tmp_path/'run')]
    assert len(seconds) == 6 and seconds[0] > 1 > max(seconds[1:]) and sum(seconds) < time.perf_counter() - start

def test_what_a_run_leaves(done):
    out, nats = done
    assert {p.name for p in out.iterdir()} == {'recipe.yaml', 'log.csv', 'checkpoints', 'samples', 'config.json', 'smooth'}
    assert [p.name for p in sorted((out/'checkpoints').glob('*.pt'))] == ['step-000000004.pt', 'step-000000006.pt']
    assert [p.name for p in (out/'samples').iterdir()] == ['step-000000006.png']
    assert list(out.parent.iterdir()) == [out]

def test_the_log(done):
    out, nats = done
    rows, c = lines(out), TRAIN
    assert tuple(rows[0]) == COLUMNS and [int(r['step']) for r in rows] == [1, 2, 3, 4, 5, 6]
    assert [r['test_nats_per_dim'] for r in rows[:-1]] == ['']*5
    assert float(rows[-1]['test_nats_per_dim']) == pytest.approx(nats, rel=1e-5) and float(rows[-1]['test_bits_per_dim']) == pytest.approx(nats/math.log(2), rel=1e-5)
    for i, r in enumerate(rows): assert float(r['lr']) == pytest.approx(c.lr_at(i, 6), rel=1e-5) and float(r['epoch']) == round((i+1)*4/10_000, 4)
    recipe = yaml.safe_load((out/'recipe.yaml').read_text())
    assert recipe == json.loads(json.dumps(asdict(tiny(samples=2))))

def test_training_losses_are_means_since_the_last_line(tmp_path, done):
    fit(tiny(every=4), tmp_path, progress=False)
    all_losses = [float(r['train_nats_per_dim']) for r in lines(done[0])]
    rows = lines(tmp_path)
    assert [r['step'] for r in rows] == ['4', '6']
    assert [float(r['train_nats_per_dim']) for r in rows] == pytest.approx([sum(all_losses[:4])/4, sum(all_losses[4:])/2], rel=1e-5)

def test_the_network_in_the_folder_is_the_average(done):
    out, nats = done
    _, state = Checkpoints(out/'checkpoints').load()
    parts = load_parts(out)
    assert set(parts) == {'kernel', 'smooth'} and parts['kernel'] == GaussianKernel(.5) and not parts['smooth'].training
    average = {k.removeprefix('module.'): v for k, v in state['ema'].items() if k != 'n_averaged'}
    assert_close(dict(parts['smooth'].state_dict()), average, rtol=0, atol=0)
    assert any(not torch.equal(v, state['model'][k]) for k, v in average.items())
    Run_ = Experiment(TINY, out, resume=True)
    assert evaluate(Run_.run, Run_.test, 3) == nats

def test_tensorboard_says_the_same(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    fit(tiny(steps=2, tensorboard=True), tmp_path, progress=False)
    events = EventAccumulator(str(tmp_path/'tensorboard')).Reload()
    assert [s.value for s in events.Scalars('train_nats_per_dim')] == pytest.approx([float(r['train_nats_per_dim']) for r in lines(tmp_path)], rel=1e-5)
    assert [s.step for s in events.Scalars('test_nats_per_dim')] == [2]

def test_lines_behind_the_checkpoint_are_dropped(tmp_path):
    log = CSVLog(tmp_path/'log.csv')
    for step in (5, 10, 15): log.add(step=step, lr=step/7)
    again = CSVLog(tmp_path/'log.csv', 10)
    again.add(step=11, lr=.5)
    text = (tmp_path/'log.csv').read_text()
    assert text == f'{",".join(COLUMNS)}\n5,,,,,{5/7:.6g},,\n10,,,,,{10/7:.6g},,\n11,,,,,0.5,,\n'
    assert CSVLog(tmp_path/'none.csv', 10).rows == [] and not (tmp_path/'none.csv').exists()

@pytest.mark.parametrize('part, kwargs, rows', [('smooth', {}, 3), ('smooth', dict(sigma_range=(.1, 1.)), 3), ('reverse', dict(sigma_range=(.1, 1.), kernel='LaplaceKernel'), 9), ('raw', {}, 3)])
def test_grids_of_samples(part, kwargs, rows):
    recipe = tiny(part=part, **kwargs)
    test = torch.rand(4, 1, 8, 8)*2 - 1
    run = Trainer(recipe.network.make(1, (8, 8), recipe.objective), test, recipe.objective.make, TRAIN)
    x = sample_grid(run, recipe.objective, test, 3)
    assert x.shape == (rows, 1, 8, 8) and torch.equal(x, sample_grid(run, recipe.objective, test, 3))
    if part != 'reverse': return
    clean, x_noisy, drawn = x.chunk(3)
    assert torch.equal(clean, test[:3])
    levels = torch.tensor([.1, .1**.5, 1.])
    noise = LaplaceKernel(1.).sample(torch.zeros(3, 1, 8, 8), make_generator(0, 'grid'))
    assert_close(x_noisy, clean + levels[:, None, None, None]*noise)
    assert torch.equal(drawn, run.ema.module.sample(context=x_noisy, sigma=levels, uniforms=run.ema.module.uniforms(3, make_generator(0, 'uniforms'))))

@pytest.mark.parametrize('part, of', [('smooth', 4), ('reverse', 4)])
def test_samples_that_are_not_finite_are_named(tmp_path, part, of):
    f = Experiment(tiny(part=part), tmp_path)
    with torch.no_grad(): f.run.ema.module.out.bias.fill_(math.nan)
    with pytest.warns(UserWarning, match=f'{of} of the {of} samples of step 0 are not finite.*network diverges.*lower lr .now 0.004'): f._draw(of)
    assert (tmp_path/'samples'/'step-000000000.png').is_file()

def test_a_run_of_thirty_steps_draws_digits_that_are_numbers(tmp_path):
    "With the average of the weights that is the default"
    recipe = tiny(steps=30, batch_size=16, init_batch=128, ema=TrainConfig.ema, warmup=TrainConfig.warmup, n_filters=8, n_mix=5, dropout=0.)
    f = Experiment(recipe, tmp_path)
    f.go(progress=False)
    x = sample_grid(f.run, recipe.objective, f.test, 16)
    assert x.isfinite().all() and x.abs().max() < 100

# test images

def small_run(task=raw_objective, seed=0, **kwargs):
    torch.manual_seed(0)
    net = PixelCNNpp(size=8, n_filters=4, n_resnet=1, n_mix=2, **kwargs).double()
    return Trainer(net, torch.rand(20, 1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)*2 - 1, task, replace(TRAIN, seed=seed, batch_size=7))

@pytest.mark.parametrize('n, batch_size', [(0, 50), (0, 6), (7, 3), (100, 19)])
def test_each_test_image_counts_once(n, batch_size):
    run = small_run()
    model, x = run.ema.module, run.data[:n or None]
    assert evaluate(run, run.data, n, batch_size) == pytest.approx(-model.log_prob(x).mean().item()/64, rel=1e-12)

def test_noise_on_test_images_is_always_the_same():
    run = small_run(reverse_objective(GaussianKernel(.3)), context_channels=1)
    first = evaluate(run, run.data, batch_size=6)
    run.step += 1
    torch.manual_seed(9)
    assert evaluate(run, run.data, batch_size=6) == first != evaluate(small_run(reverse_objective(GaussianKernel(.3)), 1, context_channels=1), run.data, batch_size=6)

@posix
def test_two_processes_judge_as_one():
    def work(rank):
        run = small_run(smooth_objective(GaussianKernel(.3)))
        return [evaluate(run, run.data, n, batch_size) for n, batch_size in ((0, 6), (7, 3), (2, 50))]
    one = work(0)
    for other in together(work): assert other == pytest.approx(one, rel=1e-12)

@posix
def test_two_processes_make_one_run(tmp_path):
    "The first of them writes"
    recipe = tiny(steps=3, batch_size=5, dropout=0., test_images=3, init_batch=0)
    one = fit(recipe, tmp_path/'one', progress=False)
    assert together(lambda rank: fit(recipe, tmp_path/'two', progress=False)) == pytest.approx([one, one], rel=1e-5)
    assert [r['step'] for r in lines(tmp_path/'two')] == ['1', '2', '3']
    for a, b in zip(without_speed(tmp_path/'one'), without_speed(tmp_path/'two')):
        assert a.pop('of') == b.pop('of') == quantity('smooth', 'continuous')
        assert [float(v or 0) for v in a.values()] == pytest.approx([float(v or 0) for v in b.values()], rel=1e-4)
    assert_close(load_parts(tmp_path/'two')['smooth'].state_dict(), load_parts(tmp_path/'one')['smooth'].state_dict(), rtol=1e-4, atol=1e-5)

# stopped and resumed

def assert_same_state(a, b):
    "Checkpoints that hold the same to the last bit"
    assert a.pop('images') == b.pop('images')
    assert_close(a, b, rtol=0, atol=0)

STEPS, EVERY = 72, 4
def command(data, out):
    "`distsmooth train` as a user starts it, which goes on where a run stands; what it says is kept beside the folder"
    settings = ['--data.name', data, '--data.size', '8', *'--network.n_filters 4 --network.n_resnet 1 --network.n_mix 1 --train.batch_size 2 --train.init_batch 4 --log.tensorboard false'.split(),
                '--train.steps', str(STEPS), '--log.save_every', str(EVERY), *'--log.every 3 --log.keep 2 --log.test_every 50 --log.test_images 3 --log.samples 0'.split()]
    resume = ['--resume', 'true'] if list(out.glob('checkpoints/step-*.pt')) else []
    with open(f'{out}.txt', 'a') as said: return subprocess.Popen([Path(sys.executable).parent/'distsmooth', 'train', '--out', out, *settings, *resume], stdout=said, stderr=said)

def freeze_when(process, ready, pause=.0005, seconds=600):
    "What `ready()` says of a process that stands still, as soon as it is true"
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if ready():
            os.kill(process.pid, signal.SIGSTOP)
            _, status = os.waitpid(process.pid, os.WUNTRACED)
            assert os.WIFSTOPPED(status), f'ended by itself: {status}'
            if found := ready(): return found
            os.kill(process.pid, signal.SIGCONT)
        assert process.poll() is None, f'ended by itself, with {process.returncode}'
        time.sleep(pause)
    raise TimeoutError(f'not ready within {seconds} s')

@posix
def test_killed_at_five_steps(tmp_path):
    "`distsmooth train` gets SIGKILL after a new checkpoint, once amid the next one, and is resumed: in the end weights, averages, optimizer and log are the same to the last bit"
    from PIL import Image
    (tmp_path/'images').mkdir()
    pixels = torch.randint(256, (20, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    for i, p in enumerate(pixels): Image.fromarray(p.numpy()).save(tmp_path/'images'/f'{i:02}.png')
    run = lambda name: command(str(tmp_path/'images'), tmp_path/name)
    said = lambda name: (tmp_path/f'{name}.txt').read_text()
    assert run('whole').wait(600) == 0, said('whole')
    folder, killed = tmp_path/'killed'/'checkpoints', []
    newest = lambda: max([0, *(int(p.stem[5:]) for p in folder.glob('step-*.pt'))])
    half_written = lambda: [p.name for p in folder.glob('.step-*.part')]
    for writing in (False, False, True, False, False):
        process, before = run('killed'), newest()
        try: freeze_when(process, lambda: newest() > before and (not writing or half_written()), .0005 if writing else .01)
        finally: process.kill()
        assert process.wait(60) == -signal.SIGKILL, said('killed')
        killed.append(newest())
        if writing: assert half_written() == [f'.step-{killed[-1] + EVERY:09}.pt.{process.pid}.part'] and newest() < STEPS
    assert len(set(killed)) == 5 and killed == sorted(killed) and 0 < killed[0] and killed[-1] < STEPS
    assert run('killed').wait(600) == 0, said('killed')
    a, b = (Checkpoints(tmp_path/name/'checkpoints').load() for name in ('whole', 'killed'))
    assert a[0] == b[0] == STEPS and set(a[1]) == {'step', 'model', 'ema', 'optimizer', 'losses', 'images'} and half_written() == []
    assert_same_state(b[1], a[1])
    assert without_speed(tmp_path/'killed') == without_speed(tmp_path/'whole') and len(lines(tmp_path/'killed')) == STEPS//3 + 1  # and one that tests
    assert_close(*(load_parts(tmp_path/name)['smooth'].state_dict() for name in ('killed', 'whole')), rtol=0, atol=0)

@posix
def test_read_ahead_by_workers_is_the_same_run(tmp_path, done):
    "Stopped without them, resumed with two: how a batch is read is no setting of the run"
    stopped(tmp_path, 3)
    fit(tiny(num_workers=2), tmp_path, resume=True, progress=False)
    assert_same_state(*(Checkpoints(at/'checkpoints').load()[1] for at in (tmp_path, done[0])))
    assert without_speed(tmp_path) == without_speed(done[0])

def test_an_average_that_stood_still_forgets(tmp_path):
    "As those of 0.1.0 all but did: after a checkpoint whose average is still that of the first step"
    recipe = tiny(steps=60, ema=.999, dropout=0.)
    settings = dict(objective=dict(part='smooth', kernel='GaussianKernel', sigma=.5, sigma_range=None, clean_noise=0.),
                    network=dict(n_filters=4, n_resnet=1, n_mix=1, head='continuous', dropout=0., context='encoder', n_classes=0),
                    train=dict(epochs=1, steps=60, batch_size=4, lr=.004, warmup=2, schedule='cosine', decay=.999995, betas=[.95, .9995], clip=1., ema=.999, init_batch=8, seed=0),
                    data=dict(name='digits', size=32))
    f = Experiment(recipe, tmp_path/'new')
    f.run.advance()
    start = {k: v.clone() for k, v in f.run.ema.state_dict().items()}
    for _ in range(9): f.run.advance()
    Checkpoints(tmp_path/'old'/'checkpoints', settings=settings).save(10, dict(f.run.state(), ema=start | dict(n_averaged=torch.tensor(10)), losses=[]))
    fit(recipe, tmp_path/'old', resume=True, progress=False)
    _, state = Checkpoints(tmp_path/'old'/'checkpoints').load()
    share = math.prod((1+t)/(10+t) for t in range(10, 60))
    apart = lambda a, b: sum((state[a][k.removeprefix('module.') if a == 'model' else k] - b[k]).square().sum() for k in start if k != 'n_averaged').sqrt()
    assert share < 1e-4 and apart('ema', {f'module.{k}': v for k, v in state['model'].items()}) < .1*apart('model', start)

@pytest.mark.parametrize('at', [3, 4, 5])
def test_resumed_from_any_step(tmp_path, done, at):
    "Lines behind the checkpoint are written anew, losses since the last line are not lost"
    stopped(tmp_path, at, tiny(every=3))
    assert fit(tiny(every=3), tmp_path, resume=True, progress=False) == done[1]
    losses = [float(r['train_nats_per_dim']) for r in lines(done[0])]
    assert [float(r['train_nats_per_dim']) for r in lines(tmp_path)] == pytest.approx([sum(losses[:3])/3, sum(losses[3:])/3], rel=1e-5)
    assert_close(Checkpoints(tmp_path/'checkpoints').load()[1]['optimizer'], Checkpoints(done[0]/'checkpoints').load()[1]['optimizer'], rtol=0, atol=0)

def test_the_network_is_never_older_than_the_newest_checkpoint(tmp_path, monkeypatch):
    "Killed while it saves at the very end: nothing is left to do after that, so all must be there"
    save = Checkpoints.save
    def die(self, step, state):
        save(self, step, state)
        if step == 6: raise Stop
    monkeypatch.setattr(Checkpoints, 'save', die)
    with pytest.raises(Stop): fit(TINY, tmp_path, progress=False)
    monkeypatch.undo()
    fit(TINY, tmp_path, resume=True, progress=False)
    average = Checkpoints(tmp_path/'checkpoints').load()[1]['ema']
    for k, v in load_parts(tmp_path)['smooth'].state_dict().items(): assert torch.equal(v, average[f'module.{k}'])

def test_a_finished_run_is_left_as_it_is(done):
    before = files(done[0])
    assert fit(tiny(samples=2), done[0], resume=True, progress=False) is None
    assert files(done[0]) == before

# refused, and what is there is left alone

def test_a_folder_with_a_run_is_not_overwritten(done):
    before = files(done[0])
    with pytest.raises(FileExistsError, match='out holds a run at step 6 already.*resume it, or name another folder'): fit(TINY, done[0], progress=False)
    assert files(done[0]) == before

@pytest.mark.parametrize('change, says', [(dict(lr=1.), 'train.lr: was 0.004, is 1.0'), (dict(n_filters=8), 'network.n_filters: was 4, is 8'), (dict(sigma=.3), 'objective.sigma: was 0.5, is 0.3'),
                                          (dict(size=16), 'data.size: was 32, is 16')], ids=lambda c: next(iter(c)) if isinstance(c, dict) else '')
def test_other_settings_are_refused(done, change, says):
    before = files(done[0])
    with pytest.raises(ValueError, match=re.escape(says)): fit(tiny(**change), done[0], resume=True, progress=False)
    assert files(done[0]) == before

def test_what_is_logged_and_where_data_are_kept_may_change(done):
    assert Experiment(tiny(every=7, keep=1, root='/elsewhere'), done[0], resume=True).run.step == 6

def test_nothing_to_resume(tmp_path):
    with pytest.raises(FileNotFoundError, match='no checkpoint in .*start a new run'): fit(TINY, tmp_path, resume=True, progress=False)

def test_a_damaged_checkpoint_names_the_one_before(tmp_path):
    stopped(tmp_path, 5)
    newest = tmp_path/'checkpoints'/'step-000000004.pt'
    newest.write_bytes(newest.read_bytes()[:1000])
    before = files(tmp_path)
    with pytest.raises(ValueError, match='step-000000004.pt is damaged or cut short. Step 2 before it is whole: delete this file'): fit(TINY, tmp_path, resume=True, progress=False)
    assert files(tmp_path) == before
    newest.unlink()
    fit(TINY, tmp_path, resume=True, progress=False)

@posix
def test_a_folder_in_use_is_refused(tmp_path):
    "By a process that has saved nothing yet"
    (tmp_path/'checkpoints').mkdir()
    read, write = os.pipe()
    def hold():
        with Checkpoints(tmp_path/'checkpoints'): os.write(write, b'x'); time.sleep(60)
    pid = fork(hold)
    try:
        os.read(read, 1)
        with pytest.raises(RuntimeError, match=f'in use by process {pid}'): fit(TINY, tmp_path, progress=False)
    finally:
        os.kill(pid, signal.SIGKILL)
        wait(pid)
    assert files(tmp_path) == {}

def test_8_bit_probabilities_of_smoothed_images_are_refused(tmp_path):
    with pytest.raises(ValueError, match="head must be 'continuous' for smoothed images.*got 'discretized'"): fit(tiny(head='discretized'), tmp_path/'r', progress=False)
    assert not (tmp_path/'r').exists()

def test_what_a_likelihood_is_of():
    assert quantity('raw', 'discretized') == '8-bit images, exact' and 'conditional, not a likelihood of the data' in quantity('reverse', 'continuous')
    assert len({quantity(*k) for k in experiment.QUANTITIES}) == 5

@pytest.mark.parametrize('field, value', [('every', 0), ('save_every', 0), ('keep', 0), ('test_every', -1), ('test_images', -1), ('sample_every', -1), ('samples', -1)])
def test_bad_log(field, value):
    with pytest.raises(ValueError, match=f'{field} must be a whole number of at least ., got {value}'): Log(**{field: value})

@pytest.mark.parametrize('sigma_range', [(1., .1), (0., 1.), (.1, .5, 1.)])
def test_bad_levels(sigma_range):
    with pytest.raises(ValueError, match='sigma'): Objective(sigma_range=sigma_range)

@posix
def test_out_of_memory_says_what_to_lower(tmp_path):
    "A real limit: the error names the settings, and the last checkpoint is good"
    import resource
    recipe = tiny(batch_size=3000, init_batch=0)
    Experiment(recipe, tmp_path)._save()
    before = files(tmp_path)
    def work():
        f = Experiment(recipe, tmp_path, resume=True)
        used = int(Path('/proc/self/statm').read_text().split()[0])*resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 30_000_000, resource.RLIM_INFINITY))
        with pytest.raises(MemoryError) as e: f.go(progress=False)
        return str(e.value)
    said = in_child(work)
    for part in ('step 0 needs more memory than there is', 'raise accumulate (now 1: the same gradient, dropout aside)', 'lower batch_size (now 3000)', 'bf16 (now False)', 'last checkpoint is untouched'): assert part in said
    assert files(tmp_path) == before

def test_other_errors_of_a_step_pass_through():
    run = small_run(lambda x, generator=None: 1/0)
    with pytest.raises(ZeroDivisionError): next(experiment._steps(run, False))
    def broken(x, generator=None): raise RuntimeError('shapes do not fit')
    with pytest.raises(RuntimeError, match='shapes do not fit'): next(experiment._steps(small_run(broken), False))

def test_clean_noise_takes_8_bit_images_off_their_scale(tmp_path):
    "It is for densities: told before the first step, not at the first look at test images"
    with pytest.raises(ValueError, match='clean_noise'): Experiment(tiny(part='reverse', head='discretized', clean_noise=.01), tmp_path/'r')

def test_a_folder_of_images(tmp_path):
    from PIL import Image
    (tmp_path/'images').mkdir()
    for i in range(12): Image.effect_noise((9, 12), 50 + 10*i).save(tmp_path/'images'/f'{i:02}.png')
    assert fit(tiny(name=str(tmp_path/'images'), size=8, steps=2), tmp_path/'run', progress=False) > 0
    assert load_parts(tmp_path/'run')['smooth'].channels == 3

# recipes

def published(part, n_filters, sigma):
    "The published configurations, value by value"
    noise = {} if part == 'raw' else dict(sigma=sigma)
    return dict(objective=dict(part=part, **noise, kernel='GaussianKernel', sigma_range=None, clean_noise=.01 if part == 'reverse' else 0.),
                network=dict(n_filters=n_filters, n_resnet=5, n_mix=10, head='discretized' if part == 'raw' else 'continuous', dropout=.5, **dict(context='stacked') if part == 'reverse' else {}),
                train=dict(epochs=1000, steps=None, batch_size=50 if part == 'reverse' else 80, lr=2e-4, warmup=0, schedule='exponential', decay=.999995, betas=[.9, .999], clip=None, accumulate=1,
                           bf16=False))
PUBLISHED = {f'{data}-{part}': dict(data=dict(name=data), **published(part, n_filters, sigma))
             for data, n_filters, sigma in (('mnist', 40, .5), ('cifar10', 160, .3), ('celeba', 160, .3)) for part in ('smooth', 'reverse', 'raw')}
PUBLISHED['celeba-raw']['data']['size'] = PUBLISHED['celeba-smooth']['data']['size'] = PUBLISHED['celeba-reverse']['data']['size'] = 32

def printed(capsys, *args):
    with pytest.raises(SystemExit) as end: main(['train', *args, '--print_config'])
    assert not end.value.code
    return yaml.safe_load(capsys.readouterr().out)

def test_the_recipes_there_are():
    assert set(recipe_names()) == {*PUBLISHED, *(f'{of}-{part}' for of in ('box', 'digits', 'cifar10-16') for part in ('smooth', 'reverse', 'raw'))}

@pytest.mark.parametrize('name', PUBLISHED)
def test_published_values(name, capsys):
    config = printed(capsys, '--recipe', name, '--out', 'x')
    for group, values in PUBLISHED[name].items(): assert {k: config[group][k] for k in values} == values
    parts = dict(data=Data, objective=Objective, network=Network, train=TrainConfig, log=Log)
    recipe = Recipe(**{k: make(**config[k]) for k, make in parts.items()})
    with torch.device('meta'): net = recipe.network.make(1 if 'mnist' in name else 3, (28, 28) if 'mnist' in name else (32, 32), recipe.objective)
    assert type(net).__name__ == ('StackedPixelCNNpp' if name.endswith('reverse') else 'PixelCNNpp')

@pytest.mark.parametrize('args', [['--recipe', 'mnist-smooth', '--network.n_filters', '7'], ['--recipe=mnist-smooth', '--network.n_filters=7'], ['--network.n_filters', '7', '--recipe', 'mnist-smooth']],
                         ids=['after', 'with =', 'before'])
def test_an_option_changes_a_recipe(args, capsys):
    config = printed(capsys, '--out', 'x', *args)
    assert config['network']['n_filters'] == 7 and config['network']['n_resnet'] == 5 and config['data']['name'] == 'mnist' and config['train']['epochs'] == 1000

def test_a_recipe_of_a_run_starts_the_same_run(done, capsys):
    config = printed(capsys, '--config', str(done[0]/'recipe.yaml'), '--out', 'x')
    assert {k: config[k] for k in ('data', 'objective', 'network', 'train', 'log')} == yaml.safe_load((done[0]/'recipe.yaml').read_text())
