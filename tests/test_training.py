"""The loop: seeds fix it, it learns, it averages, it stops on nonsense, and more processes or parts change nothing."""
import math
import os
import pickle
import subprocess
import sys
from collections import Counter
import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close
from forks import posix, together
from distsmooth.blocks import GatedResidual
from distsmooth.data import load_dataset
from distsmooth.pixelcnn import PixelCNNpp
from distsmooth.smoothing import GaussianKernel
from distsmooth.training import (Batches, Trainer, TrainConfig, batch_indices, compile_blocks, make_generator, images, make_accelerator, raw_objective, reverse_objective, seeded, smooth_objective, to_device,
                                 train, training_steps)

KERNEL, SIGMAS = GaussianKernel(0.3), (0.1, 1.0)
def net(**kwargs):
    torch.manual_seed(0)
    return PixelCNNpp(size=8, n_filters=4, n_resnet=1, n_mix=2, **{'dropout': 0., **kwargs})
def stripes(n=64): return (torch.arange(8) % 2 * 1.6 - .8).expand(n, 1, 8, 8).clone()*torch.where(torch.rand(n, 1, 1, 1) < .5, 1., -1.)
def config(**kwargs): return TrainConfig(**{'steps': 12, 'batch_size': 8, 'init_batch': 16, 'warmup': 2, 'ema': .5, **kwargs})
def exact_run(task=smooth_objective(KERNEL), data=None, net_kwargs={}, **kwargs):
    "A run in float64, on data that are the same each time"
    x = torch.rand(20, 1, 8, 8, generator=torch.Generator().manual_seed(5), dtype=torch.float64)*2 - 1
    return Trainer(net(**net_kwargs).double(), x if data is None else data, task, config(**kwargs))
def copies(run): return [{k: v.clone() for k, v in m.state_dict().items()} for m in (run.model, run.ema)]

# tasks and randomness

def test_every_task_says_what_it_tells_the_model():
    x = torch.rand(5, 1, 8, 8)
    target, told = raw_objective(x)
    assert target is x and told == {}
    assert smooth_objective(KERNEL)(x)[1] == {} and set(smooth_objective(KERNEL, SIGMAS)(x)[1]) == {'sigma'}
    target, told = reverse_objective(KERNEL)(x)
    assert target is x and set(told) == {'context'} and set(reverse_objective(KERNEL, 0., SIGMAS)(x)[1]) == {'context', 'sigma'}

def test_reverse_task_noise():
    x = torch.zeros(4000, 1, 1, 4)
    target, told = reverse_objective(KERNEL, clean_noise=.01)(x, torch.Generator().manual_seed(0))
    assert abs(target.std() - .01) < 5e-4 and abs(told['context'].std() - .3) < 1e-2
    assert abs(torch.corrcoef(torch.stack([target.flatten(), told['context'].flatten()]))[0, 1]) < .05

@pytest.mark.parametrize('make', [smooth_objective, lambda k, s: reverse_objective(k, 0., s)], ids=['smooth', 'reverse'])
def test_levels_are_log_uniform_and_true(make):
    x = torch.zeros(3000, 1, 4, 4)
    target, told = make(KERNEL, (.1, 1.))(x, torch.Generator().manual_seed(0))
    x_noisy, sigma = told.get('context', target), told['sigma']
    assert sigma.shape == (3000,) and sigma.min() >= .1 and sigma.max() <= 1
    place = sigma.log10().sort().values + 1
    assert (place - torch.linspace(0, 1, 3000)).abs().max() < .035  # Kolmogorov-Smirnov: p about 0.001
    ratio = x_noisy.flatten(1).std(1)/sigma
    for group in ratio[sigma.argsort()].split(1000): assert abs(group.pow(2).mean().sqrt() - 1) < .02

def test_chance_is_for_one_purpose():
    draw = lambda *what: torch.rand(4, generator=make_generator(*what)).tolist()
    assert draw(0, 'noise', 3) == draw(0, 'noise', 3)
    assert len({tuple(draw(*w)) for w in [(0, 'noise', 3), (0, 'noise', 4), (1, 'noise', 3), (0, 'init', 3), (0, 'dropout', 3, 0), (0, 'dropout', 3, 1)]}) == 6

def test_batches_use_each_image_once_an_epoch():
    epochs = [torch.cat([batch_indices(20, 6, 3*e + i, seed=4) for i in range(3)]).tolist() for e in range(3)]
    assert all(len(set(e)) == 18 and set(e) <= set(range(20)) for e in epochs) and epochs[0] != epochs[1]
    assert Counter(batch_indices(3, 6, 5).tolist()) == Counter(range(3))
    assert batch_indices(20, 6, 1, seed=4).tolist() != batch_indices(20, 6, 1, seed=5).tolist()

def test_a_batch_depends_on_seed_and_step_alone():
    a, b = exact_run(steps=50), exact_run(steps=60, accumulate=3, lr=1., ema=.9)
    torch.rand(7)
    for step in (0, 7):
        a.step = b.step = step
        (ta, _), (tb, _) = a.batch(), b.batch()
        assert torch.equal(ta, tb)
    c = exact_run(seed=1)
    c.step = 7
    assert not torch.equal(c.batch()[0], ta)

class OneByOne(torch.utils.data.Dataset):
    "Hands out one image and its label at a time, like a folder of images"
    def __init__(self, x): self.x = list(x)
    def __len__(self): return len(self.x)
    def __getitem__(self, i): return self.x[i], 0

@pytest.mark.parametrize('index', [[3, 1], [2], [0]])
def test_images_of_every_kind_of_data(index):
    x, index = torch.rand(5, 1, 8, 8), torch.tensor(index)
    for data in (x, torch.utils.data.TensorDataset(x, torch.arange(5)), OneByOne(x)): assert torch.equal(images(data, index), x[index])

class Counted(OneByOne):
    "Knows which images it has handed out"
    def __init__(self, x):
        super().__init__(x)
        self.seen = []
    def __getitem__(self, i):
        self.seen.append(i)
        return super().__getitem__(i)

@pytest.mark.parametrize('task', [smooth_objective(KERNEL), smooth_objective(KERNEL, SIGMAS), reverse_objective(KERNEL, .1, SIGMAS)], ids=['smooth', 'levels', 'reverse'])
def test_each_process_reads_its_rows_alone(task):
    "And gets the noise that the whole batch gives them"
    x, c = torch.rand(20, 1, 8, 8), config(batch_size=7)
    (target, told), index = Batches(x, task, c)[4], batch_indices(20, 7, 4)
    assert target.isfinite().all() and len(target) == 7
    for part in range(3):
        data = Counted(x)
        mine, said = Batches(data, task, c, part, 3)[4]
        assert data.seen == index[part::3].tolist()
        assert torch.equal(mine, target[part::3]) and said.keys() == told.keys() and all(torch.equal(v, told[k][part::3]) for k, v in said.items())

def test_a_task_that_mixes_rows_can_not_go_unnoticed():
    mixing = lambda x, generator=None: (x - x.mean(0), {})
    assert Batches(stripes(), mixing, config())[0][0].isfinite().all() and Batches(stripes(), mixing, config(), 1, 2)[0][0].isnan().all()

@pytest.mark.parametrize('task', [raw_objective, smooth_objective(KERNEL, SIGMAS), reverse_objective(KERNEL, .1)], ids=['raw', 'smooth', 'reverse'])
def test_batches_can_be_sent_to_another_process(task):
    here = Batches(torch.rand(20, 1, 8, 8), task, config())
    for a, b in zip(here[3], pickle.loads(pickle.dumps(here))[3]): assert_close(a, b, rtol=0, atol=0)

@posix
@pytest.mark.parametrize('kind', [torch.Tensor.clone, OneByOne], ids=['tensor', 'one by one'])
@pytest.mark.parametrize('num_workers', [0, 2])
def test_the_loader_starts_at_any_step(kind, num_workers):
    run = exact_run(data=kind(stripes(20)), num_workers=num_workers, steps=9)
    for start in (0, 5):
        run.step = start
        batches = list(run.loader())
        assert len(batches) == 9 - start
        for step, (target, told) in enumerate(batches, start): assert torch.equal(target, run.batches[step][0]) and told == {}

def test_a_finished_run_has_nothing_to_load():
    run = exact_run()
    run.step = run.total
    assert list(run.loader()) == list(run.go()) == []

def test_batches_on_a_device_are_the_same():
    target, told = to_device((torch.rand(2, 1, 8, 8), dict(sigma=torch.rand(2))), torch.device('meta'))
    assert target.device.type == told['sigma'].device.type == 'meta' and target.shape == (2, 1, 8, 8)

# the whole run

def test_same_seed_same_run_to_the_bit():
    x = stripes()
    runs = [[(s.loss, s.ema.state_dict()) for s in train(net(), x, smooth_objective(KERNEL), config())][-1] for _ in range(2)]
    assert runs[0][0] == runs[1][0]
    assert_close(runs[0][1], runs[1][1], rtol=0, atol=0)

@posix
def test_workers_change_nothing():
    x = stripes()
    a, b = ([(s.loss, s.ema.state_dict()) for s in train(net(dropout=.5), OneByOne(x), smooth_objective(KERNEL), config(num_workers=n))][-1] for n in (0, 2))
    assert a[0] == b[0]
    assert_close(a[1], b[1], rtol=0, atol=0)

def test_a_run_goes_on_where_it_stands():
    whole, parted = exact_run(), exact_run()
    losses = [s.loss for s in whole.go()]
    first = [s.loss for _, s in zip(range(5), parted.go())]
    rest = list(parted.go())
    assert first + [s.loss for s in rest] == losses and [s.step for s in rest] == list(range(6, 13)) and [s.lr for s in rest] == [whole.config.lr_at(i, 12) for i in range(5, 12)]
    assert_close(copies(parted), copies(whole), rtol=0, atol=0)

def test_a_whole_run_leaves_other_randomness_alone():
    run = exact_run(net_kwargs=dict(dropout=.5))
    before = torch.random.get_rng_state()
    for state in run.go(): assert torch.equal(torch.random.get_rng_state(), before)

def test_seeded_numbers_end_where_they_began():
    before = torch.random.get_rng_state()
    with pytest.raises(ZeroDivisionError), seeded(torch.device('cpu'), 0, 'dropout', 3):
        assert torch.equal(torch.rand(4), torch.rand(4, generator=make_generator(0, 'dropout', 3)))
        1/0
    assert torch.equal(torch.random.get_rng_state(), before)

@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_seeded_numbers_of_a_gpu():
    device = torch.device('cuda', torch.cuda.current_device())
    before, draws = torch.cuda.get_rng_state(device), []
    for _ in range(2):
        with seeded(device, 0, 'dropout', 3): draws.append(torch.rand(4, device=device))
    assert torch.equal(*draws) and torch.equal(torch.cuda.get_rng_state(device), before)

def test_blocks_of_one_shape_share_what_is_compiled():
    "The published network's 64 blocks, narrower: one graph for each shape, none refused for being one too many"
    graphs = []
    def backend(gm, inputs): graphs.append(gm); return gm.forward
    torch.manual_seed(0)
    model, x = PixelCNNpp(size=28, n_filters=4, n_resnet=5, n_mix=1, dropout=.5), torch.randn(2, 1, 28, 28)
    try:
        torch.compiler.set_default_backend(backend)
        torch.compiler.reset()
        compile_blocks(model)
        with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
            for _ in range(2): model.log_prob(x).sum().backward()
    finally:
        torch.compiler.set_default_backend('inductor')
        torch.compiler.reset()
    assert sum(isinstance(m, GatedResidual) for m in model.modules()) == 64 and len(graphs) == 12

@pytest.mark.parametrize('kwargs', [dict(bf16=True), dict(compile=True), dict(bf16=True, compile=True)], ids=['bf16', 'compile', 'both'])
def test_other_arithmetic_learns_the_same(kwargs):
    "Layers in bfloat16, blocks compiled: nearly the losses of plain float32, and float32 weights"
    torch.compiler.set_default_backend('eager')  # traces, as every backend does, and compiles no C++
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    try: runs = [list(train(net(), stripes(), smooth_objective(KERNEL), config(steps=4, **k))) for k in ({}, kwargs)]
    finally: torch.compiler.set_default_backend('inductor')
    assert bool(torch._dynamo.utils.counters['stats']['unique_graphs']) == ('compile' in kwargs)
    plain, other = ([s.loss for s in states] for states in runs)
    assert plain != other if 'bf16' in kwargs else True
    assert_close(other, plain, rtol=0, atol=.05 if 'bf16' in kwargs else 1e-5)
    assert {p.dtype for p in runs[1][-1].ema.parameters()} == {torch.float32} and all(p.isfinite().all() for p in runs[1][-1].ema.parameters())

def test_another_seed_is_another_run():
    x = stripes()
    a, b = ([s.loss for s in train(net(), x, smooth_objective(KERNEL), config(seed=seed, steps=3))] for seed in (0, 1))
    assert a != b

def test_dropout_comes_from_the_step_and_leaves_other_randomness_alone():
    runs = [exact_run(net_kwargs=dict(dropout=.5)) for _ in range(2)]
    losses = []
    for i, run in enumerate(runs):
        torch.manual_seed(100 + i)
        before = torch.random.get_rng_state()
        losses.append([run.advance() for _ in range(3)])
        assert torch.equal(torch.random.get_rng_state(), before)
    assert losses[0] == losses[1]
    assert_close(runs[0].model.state_dict(), runs[1].model.state_dict(), rtol=0, atol=0)
    run = exact_run(net_kwargs=dict(dropout=.5), lr=1e-30, init_batch=0, batch_size=20)
    run.batch = lambda: (run.data, {})
    assert run.advance() != run.advance()  # the same images and weights: only what is dropped differs

@pytest.mark.parametrize('task, kwargs', [(smooth_objective(KERNEL), {}), (smooth_objective(KERNEL, SIGMAS), dict(sigma_range=SIGMAS)), (raw_objective, dict(head='discretized')),
                                          (reverse_objective(KERNEL), dict(head='discretized', context_channels=1))], ids=['smooth', 'levels', 'raw', 'reverse'])
def test_every_task_learns(task, kwargs):
    losses = [s.loss for s in train(net(**kwargs), stripes(), task, config(steps=30, lr=1e-2))]
    assert sum(losses[-5:]) < 0.85*sum(losses[:5])

def test_loss_is_nats_per_dimension():
    "A run with learning rate next to nothing reports the log-likelihood of its own first batch"
    run = exact_run(lr=1e-30, batch_size=20)
    target, told = run.batch()
    loss = run.advance()
    expected = -run.model.eval().log_prob(target, **told)/run.model.dims
    assert_close(torch.tensor(loss, dtype=torch.float64), expected.mean(), rtol=1e-10, atol=1e-10)
    assert_close(run.losses(target, **told), expected, rtol=1e-10, atol=1e-10)

def test_average_of_the_weights():
    "Its decay grows to .7, which it reaches after 20 steps"
    run, expected = exact_run(ema=.7, steps=25), None
    for t in range(25):
        run.advance()
        now = {k: p.detach().clone() for k, p in run.model.named_parameters()}
        decay = min(.7, (1+t)/(10+t))
        expected = now if expected is None else {k: decay*expected[k] + (1-decay)*now[k] for k in now}
    assert_close({k: p.detach() for k, p in run.ema.module.named_parameters()}, expected, rtol=1e-12, atol=1e-12)
    assert not run.ema.training and not run.ema.module.training

@pytest.mark.parametrize('ema, steps', [(.999, 30), (.999, 300), (.999, 3750), (.9995, 300), (.9, 300)])
def test_the_average_forgets_its_start(ema, steps):
    "A model of one weight, 1 at the first step and 0 afterwards: its average is the share of the first step"
    run = Trainer(torch.nn.Linear(1, 1, bias=False).double(), torch.zeros(16, 1), raw_objective, TrainConfig(ema=ema))
    for step in range(steps):
        torch.nn.init.constant_(run.model.weight, float(step == 0))
        run.ema.update_parameters(run.model)
    share = run.ema.module.weight.item()
    assert 0 < share < 1e-6 and share == pytest.approx(math.prod(min(ema, (1+t)/(10+t)) for t in range(1, steps)), rel=1e-9)

@pytest.mark.parametrize('steps', [30, 60])
def test_the_average_of_a_short_run_is_no_worse_than_the_network(steps):
    "On held-out digits, by more than what is left of the noise in 2 x 500 of them"
    digits, test = (F.adaptive_avg_pool2d(load_dataset('digits', split)[:n][0], 8) for split, n in (('train', 2000), ('test', 500)))
    model, kernel = net(), GaussianKernel(.5)
    for state in train(model, digits, smooth_objective(kernel), TrainConfig(steps=steps)): pass
    x_noisy = kernel.sample(test, torch.Generator().manual_seed(1))
    with torch.no_grad(): mean, last = (-m.eval().log_prob(x_noisy).double()/model.dims for m in (state.ema, model))
    assert (mean - last).mean() < .01 and mean.mean() < 1.5

def test_without_average_it_is_the_network():
    run = exact_run(ema=0.)
    for _ in range(2): run.advance()
    assert_close(run.ema.module.state_dict(), run.model.state_dict(), rtol=0, atol=0)

def test_the_caller_may_stop():
    states = training_steps(net(), stripes(), smooth_objective(KERNEL), config(steps=10**9))
    assert [s.step for s, _ in zip(states, range(3))] == [1, 2, 3]

# configuration

def test_total_number_of_steps():
    assert [TrainConfig(epochs=3, batch_size=8).total(n) for n in (64, 65, 71, 72, 5)] == [24, 24, 24, 27, 3]
    assert TrainConfig(epochs=3, steps=7, batch_size=8).total(64) == 7

def test_cosine_schedule():
    c = TrainConfig(warmup=10, lr=2.)
    for step in range(100): assert math.isclose(c.lr_at(step, 100), 2*min(1, (step+1)/10)*math.cos(math.pi*step/200)**2, abs_tol=1e-12)
    rates = [c.lr_at(s, 100) for s in range(100)]
    assert rates[0] < rates[5] < rates[9] and all(a >= b for a, b in zip(rates[10:], rates[11:])) and rates[-1] < 1e-3

@pytest.mark.parametrize('warmup', [0, 4])
def test_exponential_schedule(warmup):
    c = TrainConfig(schedule='exponential', decay=.999995, lr=2e-4, warmup=warmup)
    for step in (0, 1, 3, 4, 1000, 750_000):
        assert math.isclose(c.lr_at(step, 750_000), 2e-4*math.exp(step*math.log(.999995))*(min(1, (step+1)/warmup) if warmup else 1), rel_tol=1e-9)

def test_the_optimizer_uses_the_schedule():
    run = exact_run(steps=5, warmup=2, lr=.01)
    for step in range(3):
        run.advance()
        assert run.optimizer.param_groups[0]['lr'] == run.config.lr_at(step, 5)

@pytest.mark.parametrize('field, value', [('steps', 0), ('epochs', 0), ('batch_size', -1), ('accumulate', 0), ('lr', 0.), ('lr', math.nan), ('warmup', -1), ('clip', 0.), ('ema', 1.),
                                          ('ema', -.1), ('decay', 0.), ('decay', 1.1), ('init_batch', -1), ('num_workers', -1), ('schedule', 'linear')])
def test_bad_configuration(field, value):
    with pytest.raises(ValueError, match=f'{field} must.*got {value!r}'): TrainConfig(**{field: value})

def test_no_data():
    with pytest.raises(ValueError, match=r'len\(data\) must be a whole number of at least 1, got 0'): Trainer(net(), torch.zeros(0, 1, 8, 8), raw_objective)

# nonsense

def spoiled(spoil):
    "A run of two good steps, then the task is `spoil`; also the task that it had"
    run = exact_run()
    for _ in range(2): run.advance()
    good, run.objective = run.objective, lambda x, generator=None: spoil(*good(x, generator))
    return run, good

def infinite_gradient(target, told):
    "Finite values, whose gradient is not"
    target = target.clone()
    target[0, 0, 0, 0] = 1e200
    return target, told

@pytest.mark.parametrize('spoil, says', [(lambda t, told: (t*math.nan, told), 'the loss of step 2 is nan: lower lr'),
                                         (infinite_gradient, 'step 2')], ids=['nan', 'overflow'])
def test_a_step_of_nonsense_changes_nothing(spoil, says):
    run, good = spoiled(spoil)
    before, optimizer = copies(run), [v.clone() for s in run.optimizer.state_dict()['state'].values() for v in s.values()]
    with pytest.raises(FloatingPointError, match=says): run.advance()
    assert run.step == 2
    assert_close(copies(run), before, rtol=0, atol=0)
    assert_close([v for s in run.optimizer.state_dict()['state'].values() for v in s.values()], optimizer, rtol=0, atol=0)
    run.objective, fresh = good, exact_run()
    for _ in range(2): fresh.advance()
    assert run.advance() == fresh.advance()
    assert_close(copies(run), copies(fresh), rtol=0, atol=0)  # nor does its gradient stay behind

def test_an_infinite_gradient_is_refused():
    run = exact_run()
    run.advance()
    before = copies(run)
    next(run.model.parameters()).register_hook(lambda g: g*math.inf)
    with pytest.raises(FloatingPointError, match='the gradient of step 1 has norm'): run.advance()
    assert run.step == 1
    assert_close(copies(run), before, rtol=0, atol=0)

def test_a_first_batch_of_rubbish_is_refused():
    with pytest.raises(ValueError): train(net(), torch.full((16, 1, 8, 8), math.nan), smooth_objective(KERNEL), config())

# parts and processes

def gradients(steps=0, **kwargs):
    "The gradient of a step, and what the rest of it gives"
    run = exact_run(**kwargs)
    losses = [run.advance() for _ in range(steps)]
    losses.append(run.gradient())
    return losses, {k: p.grad.clone() for k, p in run.model.named_parameters()}, *copies(run)

@pytest.mark.parametrize('accumulate', [2, 3, 7, 20])
def test_parts_give_the_gradient_of_the_whole(accumulate):
    "Seven images in 2 parts (4, 3), in 3 (3, 2, 2), one by one, and in more parts than there are images"
    kwargs = dict(task=smooth_objective(KERNEL, SIGMAS), net_kwargs=dict(sigma_range=SIGMAS), batch_size=7, init_batch=0)
    assert_close(gradients(accumulate=accumulate, **kwargs)[:2], gradients(**kwargs)[:2], rtol=1e-10, atol=1e-10)

def test_the_gradient_may_be_asked_for_twice():
    run = exact_run()
    run.gradient()
    once = {k: p.grad.clone() for k, p in run.model.named_parameters()}
    run.gradient()
    assert_close({k: p.grad for k, p in run.model.named_parameters()}, once, rtol=0, atol=0)

CASES = {'initialised': dict(init_batch=8), 'not initialised': dict(init_batch=0),
         'levels, in parts': dict(task=smooth_objective(KERNEL, SIGMAS), net_kwargs=dict(sigma_range=SIGMAS), accumulate=2, init_batch=8),
         'more parts than images': dict(accumulate=4, init_batch=0),
         'reverse': dict(task=reverse_objective(KERNEL), net_kwargs=dict(context_channels=1), init_batch=8)}

@posix
def test_two_processes_are_one_run():
    "Seven images a step: four for one process, three for the other"
    work = lambda rank: [gradients(steps=2, batch_size=7, **case) for case in CASES.values()]
    one, (first, second) = work(0), together(work)
    for name, a, b, c in zip(CASES, one, first, second):
        assert_close(b, a, rtol=1e-10, atol=1e-10, msg=lambda m: f'{name}: {m}')
        assert_close(c, b, rtol=0, atol=0, msg=lambda m: f'{name}, the processes differ: {m}')

@posix
def test_two_processes_stay_together_where_each_drops_its_own():
    work = lambda rank: gradients(steps=2, net_kwargs=dict(dropout=.5), batch_size=7)
    first, second = together(work)
    assert_close(first, second, rtol=0, atol=0)

@posix
def test_fewer_images_than_processes_are_refused():
    def work(rank):
        with pytest.raises(ValueError, match='batch_size .* must be .* at least 2, got 1'): exact_run(batch_size=1, init_batch=0).advance()
        return True
    assert together(work) == [True, True]

@posix
def test_two_processes_that_read_ahead_are_one_run():
    "From the loader on: what is logged, and the averages"
    def work(rank):
        run = exact_run(batch_size=7, steps=4, net_kwargs=dict(sigma_range=SIGMAS), task=smooth_objective(KERNEL, SIGMAS), num_workers=1)
        return [s.loss for s in run.go()], *copies(run)
    one, (first, second) = work(0), together(work)
    assert_close(first, one, rtol=1e-10, atol=1e-10)
    assert_close(second, first, rtol=0, atol=0)

@posix
@pytest.mark.parametrize('init_batch', [0, 8])
def test_all_processes_start_from_the_weights_of_the_first(init_batch):
    "Even if those of the second differ, or its first batch does"
    def work(rank):
        run = exact_run(init_batch=init_batch, batch_size=7)
        task = run.objective
        if rank: run.objective = lambda x, generator=None: task(x*.9, generator)
        with torch.no_grad():
            for p in run.model.parameters(): p.add_(.01*rank)
        run.initialise()
        return copies(run)[0]
    alone, (first, second) = work(0), together(work)
    assert_close(second, first, rtol=0, atol=0)
    assert_close(first, alone, rtol=1e-10, atol=1e-10)

# what the environment says

@pytest.mark.parametrize('kind', ['FSDP', 'DEEPSPEED', 'MEGATRON_LM', 'PARALLELISM_CONFIG'])
def test_networks_in_pieces_are_refused(kind, monkeypatch):
    monkeypatch.setenv(f'ACCELERATE_USE_{kind}', 'true')
    with pytest.raises(ValueError, match=f'ACCELERATE_USE_{kind} must not be set.*plain multi-GPU or multi-CPU'): make_accelerator()

ENVIRONMENT = dict(ACCELERATE_MIXED_PRECISION='bf16', ACCELERATE_GRADIENT_ACCUMULATION_STEPS='4', ACCELERATE_DYNAMO_BACKEND='INDUCTOR')
CODE = """
import sys, torch
from distsmooth.pixelcnn import PixelCNNpp
from distsmooth.training import TrainConfig, raw_objective, train
torch.manual_seed(0)
x, model = torch.rand(20, 1, 8, 8)*2 - 1, PixelCNNpp(size=8, n_filters=4, n_resnet=1, n_mix=2)
losses = [s.loss for s in train(model, x, raw_objective, TrainConfig(steps=3, batch_size=8, init_batch=8, warmup=0))]
torch.save((losses, model.state_dict()), sys.argv[1])
"""
def test_the_configuration_of_accelerate_changes_nothing(tmp_path):
    "A process with the variables that `accelerate launch` makes of the user's file, and one without"
    clean = {k: v for k, v in os.environ.items() if not k.startswith('ACCELERATE_')} | dict(ACCELERATE_USE_CPU='true')
    for name, env in (('plain', clean), ('configured', clean | ENVIRONMENT)): subprocess.run([sys.executable, '-c', CODE, tmp_path/name], env=env, check=True)
    plain, configured = (torch.load(tmp_path/name) for name in ('plain', 'configured'))
    assert plain[0] == configured[0]
    assert_close(configured[1], plain[1], rtol=0, atol=0)

def test_warmup_takes_a_tenth_of_the_run_at_most():
    c = TrainConfig(schedule='exponential', decay=1.)
    for total, steps in ((5, 1), (30, 3), (300, 30), (1000, 100), (3750, 100)):
        assert [c.lr_at(s, total)/c.lr for s in range(steps + 1)] == pytest.approx([*((s+1)/steps for s in range(steps)), 1])
