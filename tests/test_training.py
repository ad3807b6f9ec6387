"""The loop: seeds fix it, it learns, it averages, it stops on nonsense."""
import math
import pytest
import torch
from torch.testing import assert_close
from distsmooth.pixelcnn import PixelCNNpp
from distsmooth.smoothing import GaussianKernel
from distsmooth.training import TrainConfig, batches, raw_task, reverse_task, smooth_task, train

KERNEL = GaussianKernel(0.3)
def net(**kwargs):
    torch.manual_seed(0)
    return PixelCNNpp(size=8, n_filters=4, n_resnet=1, n_mix=2, **{'dropout': 0., **kwargs})
def stripes(n=64): return (torch.arange(8) % 2 * 1.6 - .8).expand(n, 1, 8, 8).clone()*torch.where(torch.rand(n, 1, 1, 1) < .5, 1., -1.)
def config(**kwargs): return TrainConfig(**{'steps': 12, 'batch_size': 8, 'init_batch': 16, 'warmup': 2, 'ema': .5, **kwargs})

def test_same_seed_same_run_to_the_bit():
    x = stripes()
    runs = [[(s.loss, s.ema.state_dict()) for s in train(net(), x, smooth_task(KERNEL), config())][-1] for _ in range(2)]
    assert runs[0][0] == runs[1][0]
    assert_close(runs[0][1], runs[1][1], rtol=0, atol=0)

def test_another_seed_is_another_run():
    x = stripes()
    a, b = ([s.loss for s in train(net(), x, smooth_task(KERNEL), config(seed=seed))] for seed in (0, 1))
    assert a != b

@pytest.mark.parametrize('task, kwargs', [(smooth_task(KERNEL), {}), (raw_task, dict(head='discretized')),
                                          (reverse_task(KERNEL), dict(head='discretized', context_channels=1))], ids=['smooth', 'raw', 'reverse'])
def test_every_task_learns(task, kwargs):
    losses = [s.loss for s in train(net(**kwargs), stripes(), task, config(steps=40, lr=1e-2))]
    assert sum(losses[-5:]) < 0.8*sum(losses[:5])

def test_loss_is_nats_per_dimension():
    "A run with learning rate next to nothing reports the log-likelihood of its own first batch"
    x = stripes()
    model = net()
    state = next(train(model, x, raw_task, config(lr=1e-12, batch_size=64)))
    assert_close(torch.tensor(state.loss), -model.log_prob(x).mean()/model.dims, rtol=1e-4, atol=1e-4)

def test_average_of_the_weights():
    model, expected = net(), None
    for s in train(model, stripes(), smooth_task(KERNEL), config(ema=.5, steps=4)):
        now = model.init[0].conv.bias.detach().clone()
        expected = now if expected is None else .5*expected + .5*now
        assert_close(s.ema.init[0].conv.bias, expected)

def test_the_caller_may_stop():
    states = train(net(), stripes(), smooth_task(KERNEL), config(steps=10**9))
    assert [s.step for s, _ in zip(states, range(3))] == [1, 2, 3]

def test_batches_use_each_example_once_an_epoch():
    stream = batches(torch.arange(20), 6, torch.Generator().manual_seed(0))
    for _ in range(3):
        epoch = torch.cat([next(stream) for _ in range(3)]).tolist()
        assert len(set(epoch)) == 18
    assert len(next(batches(torch.arange(3), 6))) == 3

def test_reverse_task_noise():
    x = torch.zeros(4000, 1, 1, 4)
    target, context = reverse_task(KERNEL, clean_noise=.01)(x, torch.Generator().manual_seed(0))
    assert abs(target.std() - .01) < 5e-4 and abs(context.std() - .3) < 1e-2

def test_schedule():
    c = TrainConfig(steps=100, warmup=10, lr=1.)
    rates = [c.lr_at(s) for s in range(100)]
    assert rates[0] < rates[5] < rates[9] and all(a >= b for a, b in zip(rates[10:], rates[11:])) and rates[-1] < 1e-3

@pytest.mark.parametrize('field, value', [('steps', 0), ('batch_size', -1), ('lr', 0.), ('warmup', 0), ('clip', 0.), ('ema', 1.), ('ema', -.1), ('lr', math.nan)])
def test_bad_configuration(field, value):
    with pytest.raises(ValueError, match=f'{field} must'): TrainConfig(**{field: value})

def test_a_loss_that_is_no_number_stops_the_run():
    factors = iter([1., 1., math.nan])
    states = train(net(), stripes(), lambda x, g=None: (KERNEL.sample(x, g)*next(factors), None), config())
    assert next(states).step == 1
    with pytest.raises(FloatingPointError, match='the loss is nan: lower lr'): next(states)

def test_a_first_batch_of_rubbish_is_refused():
    with pytest.raises(ValueError): next(train(net(), torch.full((16, 1, 8, 8), math.nan), smooth_task(KERNEL), config()))
