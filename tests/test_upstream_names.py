"""Names and shapes in a checkpoint of the published PyTorch code, written out from its definition and not from ours.

The definition (chenlin9/Autoregressive-Modeling-with-Distribution-Smoothing, pixelcnnpp/pixelcnnpp.py and layers.py, themselves from
pclucas14/pixel-cnn-pp): every convolution, transposed convolution and linear layer goes through torch's old `weight_norm`, so it holds
`weight_v`, in the shape of the weight, `weight_g`, one gain for each entry of its first axis, and a bias. A convolution is called `conv`
inside its shifted layer, a transposed one `deconv`, a linear one `lin_a`. Vertical filters are 2x3, those of the other stream 2x2. Six
stacks of gated blocks: three going up, of `nr_resnet` each; three going down, the last two with one more. A block has `conv_input` from
2F to F and `conv_out` from 2F to 2F (concat-ELU doubles), and `nin_skip` for what it takes in beside: nothing in the upward vertical
stream, F channels in the upward horizontal and the downward vertical one, 2F in the downward horizontal one, each doubled too. A
checkpoint is a list, whose first item is the state of the network inside `DataParallel`.
"""
from functools import cache
import pytest
import torch
from torch.testing import assert_close
from distsmooth.pixelcnn import PixelCNNpp
from distsmooth.engine.official import load_official, official_state

def normed(name, weight, bias): return {f'{name}.weight_v': weight, f'{name}.weight_g': weight[:1] + (1,)*(len(weight) - 1), f'{name}.bias': (bias,)}
def conv(name, n_in, n_out, filter): return normed(f'{name}.conv', (n_out, n_in, *filter), n_out)
def deconv(name, n_in, n_out, filter): return normed(f'{name}.deconv', (n_in, n_out, *filter), n_out)
def linear(name, n_in, n_out): return normed(f'{name}.lin_a', (n_out, n_in), n_out)

VERTICAL, OTHER = (2, 3), (2, 2)

def block(name, F, filter, skip):
    out = conv(f'{name}.conv_input', 2*F, F, filter) | conv(f'{name}.conv_out', 2*F, 2*F, filter)
    return out | linear(f'{name}.nin_skip', 2*skip*F, F) if skip else out

def stack(name, F, n, skips):
    out = {}
    for k in range(n):
        out |= block(f'{name}.u_stream.{k}', F, VERTICAL, skips[0]) | block(f'{name}.ul_stream.{k}', F, OTHER, skips[1])
    return out

def published(nr_resnet, nr_filters, input_channels, nr_logistic_mix):
    "Every name in the published state dict, with its shape"
    F, n_in = nr_filters, input_channels + 1  # a channel of ones marks the image's edge
    out = conv('u_init', n_in, F, (2, 3)) | conv('ul_init.0', n_in, F, (1, 3)) | conv('ul_init.1', n_in, F, (2, 1))
    for i, more in enumerate((0, 1, 1)):
        out |= stack(f'up_layers.{i}', F, nr_resnet, (0, 1)) | stack(f'down_layers.{i}', F, nr_resnet + more, (1, 2))
    for i in range(2):
        out |= conv(f'downsize_u_stream.{i}', F, F, VERTICAL) | conv(f'downsize_ul_stream.{i}', F, F, OTHER)
        out |= deconv(f'upsize_u_stream.{i}', F, F, VERTICAL) | deconv(f'upsize_ul_stream.{i}', F, F, OTHER)
    return out | linear('nin_out', F, (3 if input_channels == 1 else 10)*nr_logistic_mix)

@cache
def ours(nr_resnet, nr_filters, input_channels, nr_logistic_mix, size):
    net = PixelCNNpp(channels=input_channels, size=size, n_filters=nr_filters, n_resnet=nr_resnet, n_mix=nr_logistic_mix)
    return {k: tuple(v.shape) for k, v in official_state(net).items()}

MNIST, CIFAR10 = (5, 40, 1, 10), (5, 160, 3, 10)  # the published configurations: nr_resnet, nr_filters, input_channels, nr_logistic_mix

@pytest.mark.parametrize('config, size', [(MNIST, 28), (CIFAR10, 32), ((2, 6, 3, 4), 8), ((1, 4, 1, 1), 8)], ids=str)
def test_every_name_and_every_shape(config, size):
    theirs, mine = published(*config), ours(*config, size)
    assert theirs.keys() - mine.keys() == mine.keys() - theirs.keys() == set()
    assert {k: (mine[k], shape) for k, shape in theirs.items() if mine[k] != shape} == {}

BY_HAND = {
    MNIST: {
        'u_init.conv.weight_v': (40, 2, 2, 3), 'u_init.conv.weight_g': (40, 1, 1, 1), 'u_init.conv.bias': (40,),
        'ul_init.0.conv.weight_v': (40, 2, 1, 3), 'ul_init.1.conv.weight_v': (40, 2, 2, 1),
        'up_layers.0.u_stream.0.conv_input.conv.weight_v': (40, 80, 2, 3), 'up_layers.2.u_stream.4.conv_out.conv.bias': (80,),
        'up_layers.1.ul_stream.3.conv_out.conv.weight_v': (80, 80, 2, 2), 'up_layers.1.ul_stream.3.nin_skip.lin_a.weight_v': (40, 80),
        'down_layers.0.u_stream.4.nin_skip.lin_a.weight_v': (40, 80), 'down_layers.0.u_stream.4.nin_skip.lin_a.weight_g': (40, 1),
        'down_layers.1.ul_stream.5.nin_skip.lin_a.weight_v': (40, 160), 'down_layers.2.u_stream.5.conv_input.conv.weight_g': (40, 1, 1, 1),
        'downsize_u_stream.1.conv.weight_v': (40, 40, 2, 3), 'downsize_ul_stream.0.conv.weight_v': (40, 40, 2, 2),
        'upsize_u_stream.0.deconv.weight_v': (40, 40, 2, 3), 'upsize_ul_stream.1.deconv.weight_g': (40, 1, 1, 1), 'upsize_ul_stream.1.deconv.bias': (40,),
        'nin_out.lin_a.weight_v': (30, 40), 'nin_out.lin_a.weight_g': (30, 1), 'nin_out.lin_a.bias': (30,)},
    CIFAR10: {
        'u_init.conv.weight_v': (160, 4, 2, 3), 'down_layers.2.ul_stream.5.nin_skip.lin_a.weight_v': (160, 640),
        'up_layers.0.ul_stream.0.conv_input.conv.weight_v': (160, 320, 2, 2), 'nin_out.lin_a.weight_v': (100, 160), 'nin_out.lin_a.bias': (100,)}}
NOT_THERE = ['up_layers.0.u_stream.0.nin_skip.lin_a.weight_v', 'up_layers.0.u_stream.5.conv_input.conv.weight_v',
             'down_layers.0.u_stream.5.conv_input.conv.weight_v', 'down_layers.1.u_stream.6.conv_input.conv.weight_v', 'upsize_u_stream.2.deconv.weight_v']

@pytest.mark.parametrize('config, size', [(MNIST, 28), (CIFAR10, 32)], ids=['mnist', 'cifar10'])
def test_some_written_out_by_hand(config, size):
    for named in (published(*config), ours(*config, size)):
        assert {k: named.get(k) for k in BY_HAND[config]} == BY_HAND[config]
        assert not [k for k in NOT_THERE if k in named]

@pytest.mark.parametrize('config, size', [(MNIST, 28), (CIFAR10, 32)], ids=['mnist', 'cifar10'])
def test_how_many(config, size):
    "Layers of 3 tensors: 3 beginnings, 8 changes of size, the end, 15 blocks up and 17 down in two streams of 3 layers each, 15 without a skip"
    assert len(published(*config)) == len(ours(*config, size)) == 3*(3 + 8 + 1 + 3*64 - 15) == 567

def test_such_a_checkpoint_is_read():
    "A list, the network inside `DataParallel`, every name from the definition; and each tensor comes back under its name"
    state = {k: torch.randn(shape) for k, shape in published(1, 4, 3, 2).items()}
    net = load_official([{f'module.{k}': v for k, v in state.items()}, {}, {}, 9], size=8)
    assert (net.channels, net.n_mix, len(net.up[0].vertical)) == (3, 2, 1)
    assert_close(official_state(net), state, rtol=0, atol=0)
