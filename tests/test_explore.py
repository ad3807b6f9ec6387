"""Each slider's drawing function at its ends; the slider itself; and frames that work without a kernel."""
import io
import re
import pytest
import torch
from distsmooth import explore
from distsmooth.data import load_dataset
from distsmooth.toys import load_toy
from distsmooth.denoising import SmoothedDataset
from distsmooth.masked import ShiftedConv2d

X = load_dataset('digits', 'test')[:6][0]
CONV = ShiftedConv2d(1, 4, 'right', shift=True)
DENSITY = load_toy('narrow_modes').density
ENDS = {
    'images': (lambda n: explore.draw_images(X[:n]), (1, 6)),
    'rows': (lambda n: explore.draw_rows({'a': X[:n], 'b': X}), (1, 6)),
    'smoothed images': (lambda s: explore.draw_smoothed_images(X, s), (0, 2.)),
    'smoothed density': (lambda s: explore.draw_smoothed_density(DENSITY, s), (0, .8)),
    'mixture': (lambda s: explore.draw_mixture([1, 2], [0, .5], [s, .1]), (1e-3, 1.)),
    'points': (lambda s: explore.draw_points({'a': s*torch.randn(9, 2), 'b': torch.randn(9, 1, 1, 2)}), (1e-3, 1.)),
    'receptive field': (lambda p: explore.draw_receptive_field(CONV, (1, 6, 6), p), ((0, 0), (5, 5))),
    'denoising': (lambda s: explore.draw_denoising(SmoothedDataset(X, s), X, s), (.05, 1.5)),
}

@pytest.mark.parametrize('draw, ends', ENDS.values(), ids=ENDS)
def test_drawing_functions_at_their_ends(draw, ends):
    "Both ends draw, and differ; nothing is left open for pyplot to show twice"
    pictures = []
    for value in ends:
        buffer = io.BytesIO()
        draw(value).savefig(buffer, format='rgba', dpi=50)
        pictures.append(buffer.getvalue())
    assert pictures[0] != pictures[1] and all(len(set(p)) > 2 for p in pictures)
    assert not explore.plt.get_fignums()

def test_live_slider_calls_its_function():
    seen = []
    def draw(v):
        seen.append(v)
        return explore.draw_images(X[:1])
    w = explore.live_slider(draw, [.1, .2, .3], 'sigma')
    w.update()
    assert seen and set(seen) == {.2}
    w.children[0].value = .3
    assert seen[-1] == .3
    assert w.children[0].description == 'sigma' and [o[0] for o in w.children[0].options] == ['0.1', '0.2', '0.3']

def test_frames_need_no_kernel():
    page = explore.frame_slider(lambda s: explore.draw_smoothed_images(X, s), [0, .5, 1], 'sigma').data
    images = re.findall(r'<img alt="([^"]*)" src="data:image/png;base64,[^"]+"( hidden)?>', page)
    assert images == [('sigma = 0', ''), ('sigma = 0.5', ' hidden'), ('sigma = 1', ' hidden')]
    assert 'type="range"' in page and 'max="2"' in page and 'http' not in page

def test_labels_are_escaped():
    page = explore.frame_slider(lambda s: explore.draw_images(X[:1]), [1], '<b>"x"').data
    assert '<b>' not in page

def test_receptive_field_is_exact():
    field = explore.receptive_field(CONV, (1, 6, 6), (3, 3)) > 0
    want = torch.zeros(6, 6, dtype=torch.bool)
    want[2:4, 1:3] = True
    assert torch.equal(field, want)

def test_image_grid_wants_images():
    with pytest.raises(ValueError, match='x must be'): explore.image_grid(torch.zeros(2, 2, 4, 4))
