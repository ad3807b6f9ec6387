"""What the drawing functions draw: the artists hold the numbers that they should, at their places; sliders show what they are set to."""
import base64
import html
import io
import json
import re
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from fastcore.docments import DocmentText
from scipy import stats
from torch import nn
from distsmooth import plots
from distsmooth.denoising import SmoothedDataset, single_step
from distsmooth.masked import ShiftedConv2d
from distsmooth.pipeline import SmoothedModel
from distsmooth.pixelcnn import PixelCNNpp
from distsmooth.smoothing import GaussianKernel, LaplaceKernel

def gen(seed=0): return torch.Generator().manual_seed(seed)
def images(n, c=1, h=3, w=2, seed=0): return 3*torch.rand(n, c, h, w, generator=gen(seed)) - 1.5  # some values lie outside [-1, 1]

def by_hand(x, nrow):
    "The picture of a grid, pixel after pixel: a grey line around each image, grey where no image is left"
    n, c, h, w = x.shape
    cols = min(nrow, n)
    rows = (n + cols - 1)//cols
    out = np.full((rows*(h + 1) + 1, cols*(w + 1) + 1, 3), .5, dtype=np.float32)
    for i in range(n):
        for r in range(h):
            for s in range(w):
                for k in range(3):
                    value = min(max(float(x[i, k % c, r, s]), -1), 1)
                    out[i//cols*(h + 1) + 1 + r, i % cols*(w + 1) + 1 + s, k] = (value + 1)/2
    return out

def pictures(fig): return [ax.images[0].get_array() for ax in fig.axes]
def same(a, b, atol=1e-6):
    assert a.shape == b.shape
    np.testing.assert_allclose(a, b, rtol=0, atol=atol)
def pixels(fig, dpi):
    buffer = io.BytesIO()
    fig.savefig(buffer, format='png', dpi=dpi)
    return plt.imread(io.BytesIO(buffer.getvalue()))

# --- images

def test_a_grid_in_numbers():
    grid = plots.image_grid(torch.tensor([[[[-1., 1.]]], [[[0., 7.]]], [[[-9., .5]]]]), nrow=2)
    line, first, second = [.5]*7, [.5, 0, 1, .5, .5, 1, .5], [.5, 0, .75, .5, .5, .5, .5]
    for k in range(3): assert grid[..., k].tolist() == [line, first, line, second, line]

@pytest.mark.parametrize('n, nrow, channels', [(5, 3, 3), (6, 3, 1), (4, 8, 1), (3, 1, 3), (7, 2, 3)])
def test_a_grid_pixel_by_pixel(n, nrow, channels):
    x = images(n, channels)
    same(plots.image_grid(x, nrow), by_hand(x, nrow))

def test_eight_in_a_row_unless_said_otherwise():
    same(plots.image_grid(images(11)), by_hand(images(11), 8))
    same(pictures(plots.draw_images(images(11)))[0], by_hand(images(11), 8))

def test_an_image_alone_has_no_line_around_it():
    same(plots.image_grid(images(1, 3)), by_hand(images(1, 3), 1)[1:-1, 1:-1])

@pytest.mark.parametrize('shape', [(2, 2, 4, 4), (1, 4, 4), (4, 4), (2, 4, 4, 3)])
def test_image_grid_wants_images(shape):
    with pytest.raises(ValueError, match='x must be.*' + re.escape(str(shape))): plots.image_grid(torch.zeros(shape))

def test_a_network_s_output_is_drawn_and_nothing_is_changed():
    x = images(3).double().requires_grad_()
    before = x.detach().clone()
    same(plots.image_grid(x), by_hand(before, 8))
    assert torch.equal(x.detach(), before)

def test_subplots_are_let_go():
    fig, axes = plots.subplots(2, 3, figsize=(5, 4))
    assert axes.shape == (2, 3) and fig.get_size_inches().tolist() == [5, 4] and not plt.get_fignums()

@pytest.mark.parametrize('title, extra', [('', 0), ('five images', .3)])
def test_draw_images(title, extra):
    fig = plots.draw_images(images(5, 3), nrow=3, title=title, scale=.6)
    (ax,), (picture,) = fig.axes, fig.axes[0].images
    same(picture.get_array(), by_hand(images(5, 3), 3))
    assert ax.get_title() == title and not ax.axison and picture.get_interpolation() == 'nearest'
    np.testing.assert_allclose(fig.get_size_inches(), [.6*3, .6*2 + extra])

def test_draw_rows():
    rows = {'clean': images(4), 'a longer name': images(4, seed=1), 'two': images(2, seed=2)}
    fig = plots.draw_rows(rows, scale=.5)
    assert [ax.get_ylabel() for ax in fig.axes] == list(rows)
    for picture, x in zip(pictures(fig), rows.values()): same(picture, by_hand(x, 4))
    drawn = pixels(fig, fig.dpi)[..., :3].min(-1)
    boxes = [ax.get_window_extent() for ax in fig.axes]
    assert boxes[0].y0 >= boxes[1].y1 and boxes[1].y0 >= boxes[2].y1, 'the first row stands on top'
    np.testing.assert_allclose([b.x0 for b in boxes], boxes[0].x0, err_msg='images stand below each other')
    for box in boxes:
        beside = drawn[len(drawn) - int(box.y1):len(drawn) - int(box.y0), :int(box.x0)]
        assert beside.min() < .2 and (beside[:, :2] == 1).all(), 'the name stands left of its row, whole'

def test_draw_smoothed_images():
    x = images(3, h=4, w=4)/2
    for fig, want in ((plots.draw_smoothed_images(x, 0), x),
                      (plots.draw_smoothed_images(x, .4), GaussianKernel(.4).sample(x, gen(0))),
                      (plots.draw_smoothed_images(x, .4, LaplaceKernel, seed=5), LaplaceKernel(.4).sample(x, gen(5)))):
        same(pictures(fig)[0], by_hand(want, 3))
    assert fig.axes[0].get_title() == 'sigma = 0.4'
    with pytest.raises(ValueError, match='sigma must'): plots.draw_smoothed_images(x, -1.)

# --- curves and points

def normal(width): return lambda t: stats.norm.pdf(t, .2, width)

@pytest.mark.parametrize('sigma', [0, .15])
def test_draw_smoothed_density(sigma):
    "Normal noise on normal data: widths add in squares, and the steepest slope of a normal density is at one standard deviation"
    ax, = plots.draw_smoothed_density(normal(.2), sigma).axes
    (x, y), (area,) = ax.lines[0].get_data(), ax.collections
    same(x, np.linspace(-1.5, 1.5, 1501))
    same(y, normal(np.hypot(.2, sigma))(x), atol=1e-7)
    corners = area.get_paths()[0].vertices
    for point in np.stack([x, normal(.2)(x)], 1)[::100]: assert np.abs(corners - point).sum(1).min() < 1e-9
    assert corners[:, 1].min() == 0 and ax.get_title() == f'sigma = {sigma:g}'
    steepest = [np.exp(-.5)/np.sqrt(2*np.pi)/w**2 for w in (.2, np.hypot(.2, sigma))]
    names, numbers = zip(*[t.get_text().rsplit(' ', 1) for t in ax.get_legend().get_texts()])
    assert names == ('data, steepest slope', 'smoothed, steepest slope')
    np.testing.assert_allclose([float(n) for n in numbers], steepest, rtol=2e-3)

def test_draw_smoothed_density_elsewhere_and_with_other_noise():
    grid = np.linspace(-2, 2, 801)
    x, y = plots.draw_smoothed_density(normal(.1), .3, grid, LaplaceKernel).axes[0].lines[0].get_data()
    same(x, grid)
    b, nodes = .3/np.sqrt(2), np.linspace(-.5, .9, 4001)
    want = [np.trapezoid(normal(.1)(nodes)*stats.laplace.pdf(t, nodes, b), nodes) for t in grid[::80]]
    np.testing.assert_allclose(y[::80], want, atol=1e-4)

def logistic_mixture(f, x): return sum(w*f(x, m, s) for w, m, s in zip((.25, .75), (-.4, .3), (.1, .05)))
def drawn_mixture(**kw): return plots.draw_mixture([1, 3], [-.4, .3], [.1, .05], **kw).axes[0]

def test_draw_mixture_lines():
    first, second, total = [line.get_data() for line in drawn_mixture().lines]
    same(total[0], np.linspace(-1.5, 1.5, 601))
    same(first[1], .25*stats.logistic.pdf(first[0], -.4, .1))
    same(second[1], .75*stats.logistic.pdf(second[0], .3, .05))
    same(total[1], logistic_mixture(stats.logistic.pdf, total[0]))
    assert [line.get_linestyle() for line in drawn_mixture().lines] == ['--', '--', '-'] and drawn_mixture().get_xlim() == (-1.5, 1.5)

def test_draw_mixture_histogram():
    "A density: its area is one, and the area of each bar is the mixture's probability there, up to chance"
    ax = drawn_mixture(n=5000)
    edges = np.array([b.get_x() for b in ax.patches] + [1.5])
    area = np.array([b.get_height()*b.get_width() for b in ax.patches])
    same(edges, np.linspace(-1.5, 1.5, 91))
    exact = np.diff(logistic_mixture(stats.logistic.cdf, edges))
    assert abs(area.sum() - 1) < 1e-3 and (np.abs(area - exact) < 5*np.sqrt(exact*(1 - exact)/5000) + 1e-3).all()
    assert {t.get_text() for t in ax.get_legend().get_texts()} == {'5000 samples', 'density'}

def test_draw_mixture_s_seed():
    heights = lambda **kw: [b.get_height() for b in drawn_mixture(**kw).patches]
    assert heights(seed=3) == heights(seed=3) != heights(seed=4)

def test_draw_points():
    sets = {'first': torch.randn(9, 2, generator=gen()).requires_grad_(), 'second': torch.randn(5, 1, 1, 2, generator=gen(1))}
    fig = plots.draw_points(sets, lim=.7)
    assert [ax.get_title() for ax in fig.axes] == list(sets)
    for ax, points in zip(fig.axes, sets.values()):
        line, = ax.lines
        same(line.get_xydata(), points.detach().reshape(-1, 2).numpy(), atol=0)
        assert line.get_marker() == '.' and line.get_linestyle() == 'None'
        assert ax.get_xlim() == ax.get_ylim() == (-.7, .7) and ax.get_aspect() == 1
    assert fig.axes[0].get_position().x1 < fig.axes[1].get_position().x0

# --- what a pixel sees

CONV = ShiftedConv2d(1, 4, 'right', shift=True)

def test_receptive_field_is_exact():
    field = plots.receptive_field(CONV, (1, 6, 6), (3, 3)) > 0
    want = torch.zeros(6, 6, dtype=torch.bool)
    want[2:4, 1:3] = True
    assert torch.equal(field, want)

def test_receptive_field_of_a_linear_layer():
    "Of a linear layer with one output, the gradient is its weight, times the largest of the random factors"
    conv = nn.Conv2d(2, 1, 3, padding=1).double()
    field = plots.receptive_field(conv, (2, 4, 5), (1, 2), n=3, seed=4)  # the second of the three factors is the largest
    g = gen(4)
    torch.randn(3, 2, 4, 5, generator=g)  # the inputs
    want = torch.zeros(4, 5, dtype=torch.float64)
    want[0:3, 1:4] = conv.weight[0].abs().amax(0).detach()*torch.randn(3, 1, generator=g).abs().max()
    torch.testing.assert_close(field, want)

@pytest.mark.parametrize('pixel, at', [(None, (2, 3)), ((1, 4), (1, 4)), ((0, 0), (0, 0))])
def test_draw_receptive_field(pixel, at):
    "Logarithms of the field where there is one, nothing elsewhere; the cross on the pixel; the title counts"
    ax, = plots.draw_receptive_field(CONV, (1, 5, 7), pixel).axes
    field, drawn = plots.receptive_field(CONV, (1, 5, 7), at).numpy(), ax.images[0].get_array()
    np.testing.assert_array_equal(np.ma.getmaskarray(drawn), field == 0)
    seen = field > 0
    np.testing.assert_allclose(np.asarray(drawn)[seen], np.log10(field[seen]), rtol=1e-6)
    assert ax.lines[0].get_xydata().tolist() == [[at[1], at[0]]] and ax.get_title() == f'{seen.sum()} pixels seen'
    assert plots.draw_receptive_field(CONV, (1, 5, 7), pixel, 'a name').axes[0].get_title() == 'a name'

def test_unseen_pixels_are_white():
    fig = plots.draw_receptive_field(CONV, (1, 5, 7), (0, 0))
    assert fig.axes[0].images[0].cmap.get_bad()[3] == 0 and fig.axes[0].get_facecolor() == (1, 1, 1, 1)

# --- the method's stages

def test_draw_denoising():
    "The third row is the gradient step; for the exact density of known images, that is the posterior mean"
    known, x = images(20, h=4, w=4, seed=1).clamp(-1, 1), images(3, h=4, w=4).clamp(-1, 1)
    fig = plots.draw_denoising(SmoothedDataset(known, .6), x, .6, seed=4)
    noisy = GaussianKernel(.6).sample(x, gen(4))
    assert [ax.get_ylabel() for ax in fig.axes] == ['clean', 'sigma = 0.6', 'single step']
    for picture, want in zip(pictures(fig), (x, noisy, SmoothedDataset(known, .6).denoise(noisy))): same(picture, by_hand(want, 3), atol=1e-5)

@pytest.fixture(scope='module')
def tiny():
    "A small model of many levels, with weights that make the level matter"
    torch.manual_seed(0)
    net = dict(size=4, n_filters=4, n_resnet=1, n_mix=2, sigma_range=(.1, .8), dropout=0.)
    sm = SmoothedModel(PixelCNNpp(**net), PixelCNNpp(**net, head='discretized', context_channels=1), GaussianKernel(.3)).eval()
    for p in sm.parameters(): nn.init.normal_(p, std=.5)
    return sm

@pytest.mark.parametrize('sigma', [.2, .7])
@pytest.mark.parametrize('how', [{}, {'transform': 'icdf'}], ids=str)
def test_draw_ways_back(tiny, sigma, how):
    "Smoothed samples and both ways back, at the level asked for and not at the kernel's own, all from the same uniforms"
    u = tiny.uniforms(3, gen(1))
    fig = plots.draw_ways_back(tiny, u, sigma, **how)
    noisy = tiny.smooth.sample(uniforms=u[0], sigma=sigma, **how)
    want = (noisy, single_step(tiny.smooth, noisy, sigma), tiny.reverse.sample(context=noisy, uniforms=u[1], sigma=sigma, **how))
    assert [ax.get_ylabel() for ax in fig.axes] == [f'sigma = {sigma:g}', 'single step', 'two steps']
    for picture, x in zip(pictures(fig), want): same(picture, by_hand(x, 3), atol=1e-5)

def test_draw_ways_back_at_the_sigma_it_is_given(tiny):
    u = tiny.uniforms(3, gen(1))
    for a, b in zip(*[pictures(plots.draw_ways_back(tiny, u, sigma)) for sigma in (.2, .7)]): assert np.abs(a - b).max() > .01
    with pytest.raises(ValueError, match=r'sigma must lie in \[0.1, 0.8\]'): plots.draw_ways_back(tiny, u, 2.)

# --- sliders

def wide(value): return plots.subplots(figsize=(value, 1))[0]

def test_live_slider_starts_in_the_middle_and_shows_what_it_is_set_to(capsys):
    "Without a notebook a figure is shown as its name, which holds its width"
    w = plots.live_slider(wide, (v for v in (1, 2, 3.5)), 'inches')
    knob, = (c for c in w.children if hasattr(c, 'options'))
    assert knob.description == 'inches' and knob.options == (('1', 1), ('2', 2), ('3.5', 3.5)) and knob.value == 2
    def shown(): return set(re.findall(r'Figure\((\d+)x100\)', capsys.readouterr().out))
    w.update()
    assert shown() == {'200'}
    knob.value = 3.5
    assert shown() == {'350'}
    knob.index = 0
    assert shown() == {'100'}

def test_live_slider_starts_where_it_is_told():
    assert plots.live_slider(wide, [1, 2, 3], start=1).children[0].value == 1
    assert plots.live_slider(wide, [0, 1, 2], start=0).children[0].value == 0

def test_several_knobs_one_picture(capsys):
    "A value of each, in order; the knobs stay where they are, and say so while they work"
    seen = []
    def draw(width, height):
        seen.append(busy.value)
        return plots.subplots(figsize=(width, height))[0]
    w = plots.live_slider(draw, {'width of it': [1, 2, 3], 'height': (v for v in (1, 2))}, start={'height': 1})
    width, height, busy, _ = w.children
    assert (width.description, width.value, height.description, height.value) == ('width of it', 2, 'height', 1)
    height.value = 2
    assert 'Figure(200x200)' in capsys.readouterr().out and seen == ['drawing ...']
    width.value = 3
    assert 'Figure(300x200)' in capsys.readouterr().out and busy.value == ''

def frames(page):
    "(alt, pixels, hidden) of each image of a page"
    found = re.findall(r'<img alt="([^"]*)" src="data:image/png;base64,([^"]+)"( hidden)?>', page)
    return [(html.unescape(alt), plt.imread(io.BytesIO(base64.b64decode(data))), bool(hidden)) for alt, data, hidden in found]

@pytest.mark.parametrize('dpi', [70, 30])
def test_frames_are_the_figures_in_their_order(dpi):
    draw, values = (lambda s: plots.draw_smoothed_images(images(2, h=4, w=4), s)), [0, .5, 1]
    page = plots.frame_slider(draw, (v for v in values), 'sigma', **{'dpi': dpi} if dpi != 70 else {}).data
    alts, drawn, hidden = zip(*frames(page))
    assert alts == ('sigma = 0', 'sigma = 0.5', 'sigma = 1') and hidden == (False, True, True)
    for picture, v in zip(drawn, values): same(picture, pixels(draw(v), dpi), atol=0)
    assert json.loads(html.unescape(re.search('data-names="([^"]*)"', page)[1])) == ['0', '0.5', '1']
    knob = re.search('<input type="range" min="0" max="2" value="0" step="1"', page)
    assert knob and '<output>0</output>' in page and '<label>sigma ' in page and 'http' not in page

def test_labels_are_escaped():
    page = plots.frame_slider(wide, [1], '<b>"x"').data
    assert '<b>' not in page and '&lt;b&gt;&quot;x&quot;' in page and frames(page)[0][0] == '<b>"x" = 1'

@pytest.mark.parametrize('name', plots.__all__)
def test_signatures_can_be_shown(name): assert name in str(DocmentText(getattr(plots, name)))
