"""Weights of the published PyTorch code: a second implementation, from their names alone, gives the same log-likelihoods."""
import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close
from distsmooth.conditional import StackedPixelCNNpp
from distsmooth.logistic import LogisticMixture
from distsmooth.pixelcnn import PixelCNNpp
from distsmooth.engine.official import load_official, official_state

class Published:
    "The published network, computed from its state dict: every layer finds its tensors by its published name"
    def __init__(self, state): self.state = state
    def weight(self, name):
        g, v = self.state[f'{name}.weight_g'], self.state[f'{name}.weight_v']
        return g*v/v.flatten(1).norm(dim=1).view_as(g), self.state[f'{name}.bias']
    def conv(self, name, x, pad, stride=1): return F.conv2d(F.pad(x, pad), *self.weight(f'{name}.conv'), stride=stride)
    def down(self, name, x, stride=1): return self.conv(name, x, (1, 1, 1, 0), stride)
    def right(self, name, x, stride=1): return self.conv(name, x, (1, 0, 1, 0), stride)
    def linear(self, name, x): return F.linear(x.movedim(1, 3), *self.weight(f'{name}.lin_a')).movedim(3, 1)
    def up_down(self, name, x):
        y = F.conv_transpose2d(x, *self.weight(f'{name}.deconv'), stride=2, output_padding=1)
        return y[:, :, :2*x.shape[2], 1:1 + 2*x.shape[3]]
    def up_right(self, name, x):
        y = F.conv_transpose2d(x, *self.weight(f'{name}.deconv'), stride=2, output_padding=1)
        return y[:, :, :2*x.shape[2], :2*x.shape[3]]
    def block(self, name, conv, x, skip=None):
        celu = lambda t: F.elu(torch.cat([t, -t], 1))
        h = conv(f'{name}.conv_input', celu(x))
        if skip is not None: h = h + self.linear(f'{name}.nin_skip', celu(skip))
        a, b = conv(f'{name}.conv_out', celu(h)).chunk(2, 1)
        return x + a*torch.sigmoid(b)
    def __call__(self, x, n):
        x = torch.cat([x, torch.ones_like(x[:, :1])], 1)
        u = [F.pad(self.conv('u_init', x, (1, 1, 1, 0)), (0, 0, 1, -1))]
        ul = [F.pad(self.conv('ul_init.0', x, (1, 1, 0, 0)), (0, 0, 1, -1)) + F.pad(self.conv('ul_init.1', x, (0, 0, 1, 0)), (1, -1))]
        for i in range(3):
            for k in range(n):
                u.append(self.block(f'up_layers.{i}.u_stream.{k}', self.down, u[-1]))
                ul.append(self.block(f'up_layers.{i}.ul_stream.{k}', self.right, ul[-1], u[-1]))
            if i < 2:
                u.append(self.down(f'downsize_u_stream.{i}', u[-1], 2)); ul.append(self.right(f'downsize_ul_stream.{i}', ul[-1], 2))
        a, b = u.pop(), ul.pop()
        for i in range(3):
            for k in range(n + (i > 0)):
                a = self.block(f'down_layers.{i}.u_stream.{k}', self.down, a, u.pop())
                b = self.block(f'down_layers.{i}.ul_stream.{k}', self.right, b, torch.cat([a, ul.pop()], 1))
            if i < 2: a, b = self.up_down(f'upsize_u_stream.{i}', a), self.up_right(f'upsize_ul_stream.{i}', b)
        return self.linear('nin_out', F.elu(b))

def published_state(channels, n_filters, n_resnet, n_mix, seed=0):
    "Random weights under the published names, gains away from the norms"
    torch.manual_seed(seed)
    state = official_state(PixelCNNpp(channels, 8, n_filters, n_resnet, n_mix).double())
    return {k: v*(1 + .3*torch.rand_like(v)) if k.endswith('weight_g') else v + .1*torch.randn_like(v) for k, v in state.items()}

@pytest.mark.parametrize('channels, size, n_resnet', [(1, 8, 1), (1, (16, 8), 2), (3, 12, 2)])
def test_same_log_likelihoods(channels, size, n_resnet):
    state = published_state(channels, 5, n_resnet, 3)
    net = load_official(state, size).double()
    H, W = net.size
    x = torch.randn(3, channels, H, W, dtype=torch.float64)
    params = Published(state)(x, n_resnet)
    with torch.no_grad(): assert_close(net(x), params, rtol=1e-5, atol=1e-5)
    assert_close(net.log_prob(x), LogisticMixture(params, channels).log_prob(x).flatten(1).sum(1), rtol=1e-5, atol=1e-5)
    assert (len(net.up[0].vertical), net.n_mix, net.training) == (n_resnet, 3, False)

@pytest.mark.parametrize('wrap', [lambda s: s, lambda s: [s, {'step': 1}], lambda s: {f'module.{k}': v for k, v in s.items()}])
def test_every_form_of_a_checkpoint(wrap, tmp_path):
    state = published_state(1, 4, 1, 2)
    torch.save(wrap(state), tmp_path/'checkpoint.pth')
    x = torch.randn(2, 1, 8, 8)
    expected = Published(state)(x.double(), 1).float()
    for given in (wrap(state), tmp_path/'checkpoint.pth', str(tmp_path/'checkpoint.pth')):
        with torch.no_grad(): assert_close(load_official(given, 8)(x).float(), expected, rtol=1e-4, atol=1e-4)

def test_there_and_back():
    net = PixelCNNpp(3, 8, 4, 2, 2)
    back = load_official(official_state(net), 8)
    for k, v in net.state_dict().items(): assert torch.equal(v, back.state_dict()[k])

def test_samples_of_an_official_network():
    "All samplers work for it"
    net = load_official(published_state(1, 4, 1, 2), 8)
    u = net.uniforms(2, torch.Generator().manual_seed(0))
    assert_close(net.sample(uniforms=u), net.sample(uniforms=u, method='naive'), rtol=1e-3, atol=1e-3)

def test_faults(tmp_path):
    state = published_state(1, 4, 1, 2)
    with pytest.raises(ValueError, match='state must hold u_init and nin_out'): load_official({'a': torch.zeros(1)})
    with pytest.raises(ValueError, match='these differ.*embedding'): load_official({**state, 'embedding': torch.zeros(1)}, 8)
    with pytest.raises(ValueError, match='these differ'): load_official({k: v for k, v in state.items() if 'down_layers.2' not in k}, 8)
    with pytest.raises(ValueError, match='size must be divisible by 4'): load_official(state, 30)
    with pytest.raises(FileNotFoundError): load_official(tmp_path/'nothing.pth')
    with pytest.raises(ValueError, match='net must be made without n_classes, got 3'): official_state(PixelCNNpp(1, 8, 4, 1, 2, n_classes=3))
    with pytest.raises(ValueError, match=r'net must be made without sigma_range, got \(0.1, 1.0\)'): official_state(PixelCNNpp(1, 8, 4, 1, 2, sigma_range=(.1, 1.)))

# the second stage: one tall canvas, the smoothed image above the clean one

@pytest.mark.parametrize('channels, size, n_resnet', [(1, (4, 8), 2), (3, (8, 4), 1)])
def test_second_stage(channels, size, n_resnet):
    H, W = size
    state = {k: v.float().double() for k, v in published_state(channels, 5, n_resnet, 3, seed=1).items()}  # single precision holds them exactly
    net = StackedPixelCNNpp.from_tall(load_official(state, size=(2*H, W))).double()
    assert (net.channels, net.size, net.n_mix, net.context_channels, net.training) == (channels, size, 3, channels, False)
    x, context = torch.randn(2, 3, channels, H, W, dtype=torch.float64)
    params = Published(state)(torch.cat([context, x], 2), n_resnet)
    scored = LogisticMixture(params, channels).log_prob(torch.cat([context, x], 2))[..., H:, :]
    with torch.no_grad(): assert_close(net(x, context), params[:, :, H:], rtol=1e-10, atol=1e-10)
    assert_close(net.log_prob(x, context), scored.flatten(1).sum(1), rtol=1e-10, atol=1e-10)
    assert (net.log_prob(x, context.flip(0)) - net.log_prob(x, context)).abs().max() > 1e-3
    back = official_state(net.net)
    assert back.keys() == state.keys() and all(torch.equal(back[k], v) for k, v in state.items())

def test_a_canvas_that_does_not_split():
    with pytest.raises(ValueError, match='net must have no context and a height divisible by 8'): StackedPixelCNNpp.from_tall(load_official(published_state(1, 4, 1, 2), 12))
