"""Wrong values for one argument at a time of every public function: does the error name the argument, and is what comes without one a result?"""
import inspect
import io
import math
import os
import pkgutil
import random
import re
import signal
import warnings
from collections import Counter
from contextlib import contextmanager
from fnmatch import fnmatch
from importlib import import_module
from pathlib import Path
import numpy as np
import pytest
import torch
from PIL import Image
import distsmooth
import distsmooth.engine
from forks import posix
from distsmooth import (autoregressive as ar, blocks, conditional, data, denoising, exercises, features, ladder, likelihood, logistic,
                        made, masked, metrics, pipeline, pixelcnn, plots, registry, smoothing, toys, training)
from distsmooth.engine import cells, checkpoint, experiment, official, shards

# what is called

def rand(*shape, seed=0): return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))
def image(*shape, seed=0): return rand(*shape, seed=seed)*2 - 1
def generator(): return torch.Generator().manual_seed(0)

def of_networks():
    "Tiny networks, and what they are asked"
    torch.manual_seed(0)
    small = dict(size=4, n_filters=2, n_resnet=1, n_mix=1, dropout=0.)
    pix, told = pixelcnn.PixelCNNpp(**small).eval(), pixelcnn.PixelCNNpp(**small, context_channels=1, n_classes=3, sigma_range=(.1, 1.)).eval()
    stacked = conditional.StackedPixelCNNpp(**small).eval()
    net, back = made.MADE((1, 3), (4,), 2).eval(), made.MADE((1, 3), (4,), 2, context_channels=1).eval()
    x, x4, u = image(2, 1, 1, 3), image(2, 1, 4, 4), rand(2, 2, 1, 3)
    conditions = dict(context=x4, label=torch.tensor([0, 2]), sigma=.5)
    draw = dict(method='naive', known=x, mask=torch.tensor([[True, False, False]]), transform='icdf', temperature=.9)
    yield from [
        ('made.MADE', made.MADE, dict(size=(1, 2), n_hidden=(4,), n_mix=2, head='continuous', context_channels=1)),
        ('made.MADE.forward', back, dict(x=x, context=x)),
        ('made.MaskedLinear', made.MaskedLinear, dict(mask=torch.ones(2, 3))),
        ('made.MaskedLinear.forward', made.MaskedLinear(torch.ones(2, 3)), dict(x=rand(4, 3))),
        ('made.made_masks', made.made_masks, dict(n_inputs=3, n_hidden=(4, 4))),
        ('pixelcnn.PixelCNNpp', pixelcnn.PixelCNNpp, dict(channels=1, **small, head='continuous', context_channels=1, n_classes=2, sigma_range=(.1, 1.))),
        ('pixelcnn.PixelCNNpp.forward', told, dict(x=x4, **conditions)),
        ('conditional.StackedPixelCNNpp', conditional.StackedPixelCNNpp,
         dict(channels=1, **small, head='continuous', n_classes=2, sigma_range=(.1, 1.))),
        ('conditional.StackedPixelCNNpp.forward', stacked, dict(x=x4, context=x4)),
        ('autoregressive.Autoregressive', ar.Autoregressive,
         dict(channels=1, size=4, n_mix=2, head='continuous', context_channels=1, n_classes=2, sigma_range=(.1, 1.))),
        ('autoregressive.Autoregressive.mixture', net.mixture, dict(params=rand(2, 6, 1, 3))),
        ('autoregressive.Autoregressive.from_config', made.MADE.from_config, dict(config=dict(size=(1, 2), n_hidden=(4,)))),
        ('autoregressive.Autoregressive.check_conditions', told.check_conditions, dict(**conditions)),
        ('autoregressive.Autoregressive.dist', told.dist, dict(**conditions)),
        ('autoregressive.Autoregressive.dist_at', told.dist_at, dict(**conditions)),
        ('autoregressive.Autoregressive.log_prob', told.log_prob, dict(x=x4, **conditions, batch_size=1)),
        ('autoregressive.Autoregressive.uniforms', net.uniforms, dict(n=2, generator=generator())),
        ('autoregressive.Autoregressive.uniforms', net.uniforms, dict(n=2, seed=0)),
        ('autoregressive.Autoregressive.sample', net.sample, dict(n=2, uniforms=u, **draw)),
        ('autoregressive.Autoregressive.sample', back.sample, dict(n=2, context=x, generator=generator(), progress=False)),
        ('autoregressive.draw', lambda **how: list(ar.draw(**how)), dict(dist=net, uniforms=u, out=torch.empty(2, 1, 1, 3), dtype=torch.float32, **draw)),
        ('autoregressive.gradient', ar.gradient, dict(f=lambda x: (x**2).sum(1), x=rand(2, 3))),
        ('autoregressive.in_batches', ar.in_batches, dict(f=lambda dist, x: dist.log_prob(x), batch_size=1, dist=net.dist(), x=x)),
        ('autoregressive.check_defined', ar.check_defined, dict(x=x, what='it', model=net)),
        ('autoregressive.ModelDistribution', ar.ModelDistribution, dict(model=back, context=x)),
        ('autoregressive.ModelDistribution.mixture', net.dist().mixture, dict(x=x)),
        ('autoregressive.ModelDistribution.log_prob', net.dist().log_prob, dict(x=x, batch_size=1)),
        ('autoregressive.ModelDistribution.score', net.dist().score, dict(x=x, batch_size=1)),
        ('autoregressive.ModelDistribution.from_uniforms', net.dist().from_uniforms, dict(uniforms=u, progress=False, **draw)),
        ('autoregressive.ModelDistribution.sample', net.dist().sample, dict(shape=(2,), generator=generator())),
        ('autoregressive.ModelDistribution.sample', net.dist().sample, dict(shape=(2,), seed=0)),
        ('denoising.SmoothedDataset', denoising.SmoothedDataset, dict(x=x4, sigma=.5)),
        ('denoising.SmoothedDataset.log_prob', denoising.SmoothedDataset(x4, .5).log_prob, dict(x_noisy=x4)),
        ('denoising.SmoothedDataset.denoise', denoising.SmoothedDataset(x4, .5).denoise, dict(x_noisy=x4, score='local')),
        ('denoising.joint_score', denoising.joint_score, dict(dist=net, x_noisy=x)),
        ('denoising.local_score', denoising.local_score, dict(dist=net, x_noisy=x)),
        ('denoising.score', denoising.score, dict(dist=net, x_noisy=x, kind='joint')),
        ('denoising.single_step', denoising.single_step, dict(model=net, x_noisy=x, sigma=.5, score='joint', batch_size=1)),
        ('denoising.single_step', denoising.single_step, dict(model=told, x_noisy=x4, **conditions)),
        ('official.official_state', official.official_state, dict(net=pix)),
        ('official.load_official', official.load_official, dict(state=official.official_state(pix), size=4, head='continuous')),
        ('plots.receptive_field', plots.receptive_field, dict(net=pix, size=(1, 4, 4), pixel=(2, 2), n=2, seed=0)),
        ('plots.draw_receptive_field', plots.draw_receptive_field, dict(net=pix, size=(1, 4, 4), pixel=(2, 2), title='it')),
        ('plots.draw_denoising', plots.draw_denoising, dict(model=pix, x=x4, sigma=.5, seed=0)),
        ('shards.class_labels', shards.class_labels, dict(net=told, label=1, first=3, n=2)),
        ('plots.draw_prediction', plots.draw_prediction, dict(dist=pix, x=image(1, 1, 4, 4), pixels=[(1, 2)])),
        ('plots.draw_network', plots.draw_network, dict(n_resnet=1)),
        ('plots.draw_two_steps', plots.draw_two_steps, {}),
        ('blocks.GatedResidual', blocks.GatedResidual,
         dict(n_filters=2, conv=masked.ShiftedConv2d, n_skip=2, n_context=2, n_cond=2, dropout=.5)),
        ('blocks.GatedResidual.forward', blocks.GatedResidual(2, masked.ShiftedConv2d, 2, 2, 2), 
         dict(x=image(1, 2, 4, 4), skip=image(1, 2, 4, 4), context=image(1, 2, 4, 4), cond=image(1, 2))),
        ('blocks.data_dependent_init', lambda x, **how: blocks.data_dependent_init(pixelcnn.PixelCNNpp(**small | dict(size=8, n_filters=4)), x, **how),
         dict(x=image(16, 1, 8, 8), scale=1., gate_scale=.1)),
        ('blocks.ContextEncoder', blocks.ContextEncoder, dict(channels=1, n_filters=2, n_levels=2, dropout=.1)),
        ('blocks.ContextEncoder.forward', blocks.ContextEncoder(1, 2), dict(context=x4)),
        ('blocks.SigmaEmbedding', blocks.SigmaEmbedding, dict(sigma_range=(.1, 1.), n_filters=2, n_cosines=2)),
        ('blocks.SigmaEmbedding.forward', blocks.SigmaEmbedding((.1, 1.), 2), dict(sigma=torch.tensor([.2, .3]))),
    ]

def of_models():
    "A small two-step model, a ladder, their likelihoods"
    torch.manual_seed(0)
    smooth, reverse = made.MADE((1, 3), (4,), 2).eval(), made.MADE((1, 3), (4,), 2, context_channels=1).eval()
    raw, kernel = made.MADE((1, 3), (4,), 2).eval(), smoothing.GaussianKernel(.5)
    sm = pipeline.SmoothedModel(smooth, reverse, kernel, raw)
    rungs = ladder.Ladder(smooth, ladder.RungMADE((1, 3), (4,), 2).eval(), (.5, .2))
    x, mask, g = image(2, 1, 1, 3), torch.tensor([[True, False, False]]), generator()
    pair, planes, files = sm.uniforms(2, seed=0), ladder.rung_context(x, .5, .2), pipeline.read_files('digits')
    rung = ladder.RungMarginal(rungs.rung(0, x), x, rungs.kernels[0])
    weights, bits = rand(2, 4), likelihood.bits_per_dim(raw, x)
    yield from [
        ('pipeline.SmoothedModel', pipeline.SmoothedModel, dict(smooth=smooth, reverse=reverse, kernel=kernel, raw=raw)),
        ('pipeline.SmoothedModel.check_sigma', sm.check_sigma, dict(sigma=.5)),
        ('pipeline.SmoothedModel.kernel_at', sm.kernel_at, dict(sigma=.5)),
        ('pipeline.SmoothedModel.denoise', sm.denoise, dict(x_noisy=x, how='two_step', uniforms=pair[1], sigma=.5)),
        ('pipeline.SmoothedModel.denoise', sm.denoise, dict(x_noisy=x, how='single_step', score='joint', batch_size=1, label=None)),
        ('pipeline.SmoothedModel.uniforms', sm.uniforms, dict(n=2, seed=0)),
        ('pipeline.SmoothedModel.uniforms', sm.uniforms, dict(n=2, generator=g)),
        ('pipeline.SmoothedModel.sample', sm.sample, dict(n=2, denoise='two_step', sigma=.5, uniforms=pair, method='naive', temperature=.9)),
        ('pipeline.SmoothedModel.sample', sm.sample, dict(n=2, denoise='single_step', label=None, seed=0, transform='choice')),
        ('pipeline.SmoothedModel.log_weight', sm.log_weight, dict(x=x, x_noisy=x, sigma=.5, label=None)),
        ('pipeline.SmoothedModel.iwae', sm.iwae, dict(x=x, k=2, generator=g, sigma=.5, label=None)),
        ('pipeline.SmoothedModel.elbo', sm.elbo, dict(x=x, generator=g, sigma=.5)),
        ('pipeline.SmoothedModel.complete', sm.complete, dict(x=x, mask=mask, uniforms=pair, generator=g, sigma=.5, label=None, method='naive')),
        ('pipeline.SmoothedModel.complete', sm.complete, dict(x=x, mask=mask, seed=0)),
        ('pipeline.SmoothedModel.save_pretrained', sm.save_pretrained, dict(save_directory=Path('model'))),
        ('pipeline.save_parts', lambda folder, kernel, **parts: pipeline.save_parts(folder, kernel, **parts),
         dict(folder=Path('model'), kernel=kernel, smooth=smooth, reverse=reverse, raw=raw)),
        ('pipeline.parts_from', pipeline.parts_from, dict(files=files, name='it')),
        ('pipeline.read_files', pipeline.read_files, dict(name='digits')),
        ('pipeline.load_parts', pipeline.load_parts, dict(name='digits')),
        ('autoregressive.Autoregressive.from_pretrained', pixelcnn.PixelCNNpp.from_pretrained, dict(folder=pipeline.PRETRAINED/'digits'/'smooth')),
        ('ladder.geometric', ladder.geometric, dict(high=.5, low=.1, n=3)),
        ('ladder.rung_context', ladder.rung_context, dict(x_high=x, high=.5, low=.2)),
        ('ladder.rung_ends', ladder.rung_ends, dict(context=planes)),
        ('ladder.RungMADE', ladder.RungMADE, dict(size=(1, 3), n_hidden=(4,), n_mix=1)),
        ('ladder.RungMADE.forward', rungs.reverse, dict(x=x, context=planes)),
        ('ladder.rungs_of', ladder.rungs_of, dict(sigmas=(.5, .2))),
        ('ladder.any_rungs', ladder.any_rungs, dict(sigma_range=(.1, 1.), clean=.3)),
        ('ladder.rung_objective', ladder.rung_objective, dict(pick=ladder.rungs_of((.5, .2)))),
        ('ladder.Ladder', ladder.Ladder, dict(smooth=smooth, reverse=rungs.reverse, sigmas=(.5, .2))),
        ('ladder.Ladder.rung', rungs.rung, dict(k=0, x_high=x)),
        ('ladder.Ladder.uniforms', rungs.uniforms, dict(n=2, generator=g)),
        ('ladder.Ladder.descend', lambda uniforms, **how: list(rungs.descend(uniforms, **how)), dict(uniforms=rungs.uniforms(2), method='naive')),
        ('ladder.Ladder.sample', rungs.sample, dict(n=2, denoise='single_step', generator=g, score='joint', temperature=.9)),
        ('ladder.Ladder.sample', rungs.sample, dict(denoise='ladder', uniforms=rungs.uniforms(2))),
        ('ladder.Ladder.climb', rungs.climb, dict(x=x, generator=g)),
        ('ladder.Ladder.log_weight', rungs.log_weight, dict(x=x, noisy=rungs.climb(x))),
        ('ladder.Ladder.iwae', rungs.iwae, dict(x=x, k=2, generator=g)),
        ('ladder.Ladder.elbo', rungs.elbo, dict(x=x, generator=g)),
        ('ladder.RungMarginal', ladder.RungMarginal, dict(rung=rung.rung, x_high=x, kernel=kernel)),
        ('ladder.RungMarginal.log_prob', rung.log_prob, dict(x=x)),
        ('likelihood.dequantize', likelihood.dequantize, dict(x=logistic.quantize(x), generator=g)),
        ('likelihood.log_weights', likelihood.log_weights, dict(model=sm, x=x, k=2, sigma=.5, label=None, generator=g, batch_size=2, progress=False)),
        ('likelihood.iwae', likelihood.iwae, dict(log_weights=weights, k=2)),
        ('likelihood.bits_per_dim', likelihood.bits_per_dim, dict(model=sm, x=x, kind='iwae-2', sigma=.5, label=None, generator=g, batch_size=2, progress=False)),
        ('likelihood.bits_per_dim', likelihood.bits_per_dim, dict(model=sm, x=x, kind='exact', part='reverse', generator=g)),
        ('likelihood.bits_per_dim', likelihood.bits_per_dim, dict(model=reverse, x=x, context=x, allow_levels=True)),
        ('likelihood.BitsPerDim.minus', bits.minus, dict(other=bits)),
        ('plots.draw_ways_back', plots.draw_ways_back, dict(sm=sm, uniforms=pair, sigma=.5, method='naive')),
        ('shards.image_uniforms', shards.image_uniforms, dict(net=smooth, seed=0, what='it', first=3, n=2)),
        ('shards.sample_shards', shards.sample_shards, dict(model=SAVED, out=Path('shards'), n=2, part='smooth', sigma=.5, seed=0, batch_size=2, progress=False,
                                                            method='naive')),
        ('shards.denoise_shards', shards.denoise_shards, dict(model=SAVED, samples=SAVED/'x.npy', out=Path('back'), how='two_step', sigma=.5, score='joint',
                                                              seed=0, batch_size=2, progress=False)),
        ('shards.load_samples', shards.load_samples, dict(path=SAVED/'x.npy', n=1)),
    ]

def of_toys():
    rings, g, kernel = toys.Rings(), generator(), smoothing.LaplaceKernel(.3)
    density, grid, x = toys.NarrowModes(width=.1).density, np.linspace(-2, 2, 101), image(2, 1, 4, 4)
    yield from [
        ('toys.NarrowModes', toys.NarrowModes, dict(centres=(-.5, .5), width=.1, weights=torch.tensor([.3, .7]))),
        ('toys.Rings', toys.Rings, dict(radii=(.3, .6), width=.1)),
        ('toys.Olympics', toys.Olympics, dict(radius=.3, width=.1)),
        ('toys.Pinwheel', toys.Pinwheel, dict(arms=3, twist=1., radius=.5, length=.1, width=.1)),
        ('toys.load_toy', toys.load_toy, dict(name='rings', width=.1)),
        ('toys.Toy.sample', rings.sample, dict(n=3, generator=g)),
        ('toys.Toy.log_prob', rings.log_prob, dict(points=rand(3, 2))),
        ('toys.Toy.density', rings.density, dict(points=np.zeros((3, 2)))),
        ('toys.Toy.smoothed', rings.smoothed, dict(sigma=.1)),
        ('smoothing.Kernel', smoothing.GaussianKernel, dict(sigma=.5)),
        ('smoothing.GaussianKernel', smoothing.GaussianKernel, dict(sigma=.5)),
        ('smoothing.LaplaceKernel', smoothing.LaplaceKernel, dict(sigma=.5)),
        ('smoothing.UniformKernel', smoothing.UniformKernel, dict(sigma=.5)),
        ('smoothing.Kernel.sample', kernel.sample, dict(x=x, generator=g)),
        ('smoothing.Kernel.log_prob', kernel.log_prob, dict(x_noisy=x, x=x)),
        ('smoothing.smooth_density', smoothing.smooth_density, dict(density=density, kernel=kernel, grid=grid, support=np.linspace(-3, 3, 101))),
        ('smoothing.lipschitz', smoothing.lipschitz, dict(values=density(grid), grid=grid)),
        ('smoothing.bias_variance', smoothing.bias_variance, dict(density=density, kernel=kernel, n=10, grid=grid)),
        ('smoothing.suggest_sigma', smoothing.suggest_sigma, dict(x=x)),
        ('plots.image_grid', plots.image_grid, dict(x=x, nrow=2)),
        ('plots.draw_images', plots.draw_images, dict(x=x, nrow=2, title='it', scale=.5)),
        ('plots.draw_rows', plots.draw_rows, dict(rows=dict(a=x), scale=.5)),
        ('plots.draw_smoothed_images', plots.draw_smoothed_images, dict(x=x, sigma=.5, kernel=smoothing.LaplaceKernel, seed=0)),
        ('plots.draw_smoothed_density', plots.draw_smoothed_density, dict(density=density, sigma=.5, grid=grid, kernel=smoothing.GaussianKernel)),
        ('plots.draw_mixture', plots.draw_mixture, dict(weights=(.5, .5), means=(-.2, .3), scales=(.1, .1), n=20, seed=0)),
        ('plots.draw_points', plots.draw_points, dict(sets=dict(a=rand(3, 2)), lim=1.3)),
        ('plots.live_slider', plots.live_slider, dict(draw=lambda value: None, values=(1, 2, 3), label='it', start=2)),
        ('plots.frame_slider', plots.frame_slider, dict(draw=lambda value: plots.draw_points(dict(a=rand(3, 2))), values=(1,), label='it', dpi=10)),
    ]

def of_layers():
    g, params, x, u, x3 = generator(), image(2, 6, 1, 3), image(2, 1, 1, 3), rand(2, 1, 1, 3), image(2, 3, 4, 4)
    mixture, levels = logistic.LogisticMixture(params), logistic.DiscretizedLogisticMixture(params)
    conv = masked.MaskedConv2d(3, 3, 3, 'A')
    yield from [
        ('logistic.n_params', logistic.n_params, dict(channels=3, n_mix=2)),
        ('logistic.LogisticMixture', logistic.LogisticMixture, dict(params=params, channels=1)),
        ('logistic.DiscretizedLogisticMixture', logistic.DiscretizedLogisticMixture, dict(params=params, channels=1)),
        ('logistic.LogisticMixture.log_prob', mixture.log_prob, dict(x=x)),
        ('logistic.LogisticMixture.log_prob', levels.log_prob, dict(x=logistic.quantize(x))),
        ('logistic.LogisticMixture.cdf', mixture.cdf, dict(x=x)),
        ('logistic.LogisticMixture.icdf', mixture.icdf, dict(u=u, n_steps=5)),
        ('logistic.LogisticMixture.from_uniforms', mixture.from_uniforms, dict(uniforms=rand(2, 2, 1, 3), transform='icdf')),
        ('logistic.LogisticMixture.sample', mixture.sample, dict(generator=g)),
        ('logistic.LogisticMixture.tempered', mixture.tempered, dict(temperature=.5)),
        ('logistic.log_sigmoid_diff', logistic.log_sigmoid_diff, dict(a=rand(3) + 2, b=rand(3))),
        ('logistic.quantize', logistic.quantize, dict(x=x)),
        ('masked.causal_mask', masked.causal_mask, dict(n_in=3, n_out=6, kernel_size=3, kind='A', colours=3)),
        ('masked.MaskedConv2d', masked.MaskedConv2d, dict(n_in=3, n_out=6, kernel_size=3, kind='A', colours=3)),
        ('masked.MaskedConv2d.forward', conv, dict(x=x3)),
        ('masked.shift_padding', masked.shift_padding, dict(kernel=(2, 3), direction='down')),
        ('masked.padded', masked.padded, dict(x=x3, left=1, right=1, top=1)),
        ('masked.ShiftedConv2d', masked.ShiftedConv2d, dict(n_in=3, n_out=2, direction='right', kernel=(2, 2), stride=1, shift=True)),
        ('masked.ShiftedConv2d.forward', masked.ShiftedConv2d(3, 2), dict(x=x3, above=image(2, 3, 1, 4))),
        ('masked.ShiftedConvTranspose2d', masked.ShiftedConvTranspose2d, dict(n_in=3, n_out=2, direction='right')),
        ('masked.ShiftedConvTranspose2d.forward', masked.ShiftedConvTranspose2d(3, 2), dict(x=x3)),
        ('blocks.pointwise', blocks.pointwise, dict(n_in=3, n_out=2)),
        ('blocks.concat_elu', blocks.concat_elu, dict(x=x3, dim=1)),
        ('blocks.gated', blocks.gated, dict(x=x3, h=image(2, 6, 4, 4))),
        ('blocks.dropout', blocks.dropout, dict(x=x3, p=.5, training=True)),
        ('blocks.Dropout', blocks.Dropout, dict(p=.5, inplace=False)),
        ('blocks.Dropout.forward', blocks.Dropout(.5), dict(x=x3)),
    ]

def of_data():
    pixels = np.zeros((12, 4, 4), np.uint8)
    small, x = data.Images(pixels + np.arange(12, dtype=np.uint8)[:, None, None], np.arange(12) % 3), image(12, 1, 4, 4)
    kernel, config = smoothing.GaussianKernel(.5), training.TrainConfig(steps=1, batch_size=2, init_batch=0)
    objective, state = training.smooth_objective(kernel), dict(a=torch.zeros(2))
    def net(): return pixelcnn.PixelCNNpp(size=4, n_filters=2, n_resnet=1, n_mix=1)
    run = training.Trainer(net(), x, objective, config)
    features_, logits, real = rand(12, 2), rand(12, 3, seed=1), rand(12, 2, seed=2)
    extractor = features.Extractor('flat', lambda x: x.flatten(1)[:, :2])
    found = features.extract_features(x, extractor)
    recipe = experiment.Recipe(train=config)
    kept = checkpoint.Checkpoints(SAVED/'checkpoints')
    yield from [
        ('data.to_unit', data.to_unit, dict(pixels=small.pixels)),
        ('data.to_bytes', data.to_bytes, dict(x=x)),
        ('data.Images', data.Images, dict(pixels=pixels, labels=np.arange(12))),
        ('data.data_root', data.data_root, dict(root='here')),
        ('data.Folder', data.Folder, dict(root=SAVED/'images', split='train', size=4)),
        ('data.fingerprint', data.fingerprint, dict(data=small)),
        ('data.load_dataset', data.load_dataset, dict(name='digits', split='test', root=None, size=4, download=False)),
        ('training.raw_objective', training.raw_objective, dict(x=x, generator=None)),
        ('training.smooth_objective', training.smooth_objective, dict(kernel=kernel, sigma_range=(.1, 1.))),
        ('training.reverse_objective', training.reverse_objective, dict(kernel=kernel, clean_noise=.01, sigma_range=(.1, 1.))),
        ('training.TrainConfig', training.TrainConfig, {k: v for k, v in vars(training.TrainConfig(steps=3)).items()}),
        ('training.TrainConfig.total', config.total, dict(n=20)),
        ('training.TrainConfig.lr_at', config.lr_at, dict(step=0, total=10)),
        ('training.make_generator', training.make_generator, dict(seed=0)),
        ('training.batch_indices', training.batch_indices, dict(n=10, batch_size=3, step=4, seed=0)),
        ('training.growing_ema', training.growing_ema, dict(decay=.9)),
        ('training.Trainer', lambda **how: training.Trainer(**dict(model=net()) | how), dict(model=net(), data=x, objective=objective, config=config)),
        ('training.train', lambda **how: training.train(**dict(model=net()) | how)[-1].loss,
         dict(model=net(), data=x, objective=objective, config=config, progress=False)),
        ('training.training_steps', lambda **how: list(training.training_steps(**dict(model=net()) | how))[-1].loss,
         dict(data=x, objective=objective, config=config)),
        ('training.Trainer.losses', run.losses, dict(target=x)),
        ('training.Trainer.examples', run.examples, dict(data=x, index=torch.arange(3), generator=generator())),
        ('training.images', training.images, dict(data=small, index=torch.arange(3))),
        ('training.labels', training.labels, dict(data=small, index=torch.arange(3))),
        ('training.Batches', lambda **how: training.Batches(**how)[0], dict(data=small, objective=objective, config=config, part=0, parts=2, labelled=True)),
        ('training.to_device', training.to_device, dict(batch=(x, {}), device='cpu')),
        ('metrics.confidence', metrics.confidence, dict(logits=logits)),
        ('metrics.frechet_distance', metrics.frechet_distance, dict(samples=features_, reference=real)),
        ('metrics.kernel_distance', metrics.kernel_distance, dict(samples=features_, reference=real, subset_size=5, subsets=2, seed=0)),
        ('metrics.mind', metrics.mind, dict(samples=features_, reference=real, directions=5, seed=0)),
        ('metrics.inception_score', metrics.inception_score, dict(logits=logits, splits=2, seed=0)),
        ('metrics.neighbourhoods', metrics.neighbourhoods, dict(samples=features_, reference=real, k=2)),
        ('metrics.nearest', metrics.nearest, dict(samples=features_, reference=real, k=2)),
        ('metrics.evaluate_samples', metrics.evaluate_samples,
         dict(samples=x, reference=image(24, 1, 4, 4), extractor=extractor, floor=image(24, 1, 4, 4, seed=3), n=6, metrics=['MIND', 'precision'], k=2, groups=2,
              seed=0, weights=None, device='cpu', batch_size=5, progress=False)),
        ('features.load_extractor', features.load_extractor, dict(extractor='digits', weights=features.CLASSIFIER, device='cpu')),
        ('features.digits', features.digits, dict(weights=features.CLASSIFIER, device='cpu')),
        ('features.extra', features.extra, dict(name='torchmetrics')),
        ('features.image_batches', lambda **how: list(features.image_batches(**how)), dict(images=x, batch_size=5)),
        ('features.extract_features', features.extract_features, dict(images=x, extractor=extractor, n=5, name='images', batch_size=5, progress=False)),
        ('features.Features.shuffled', found.shuffled, dict(seed=0)),
        ('features.DigitClassifier', features.DigitClassifier, dict(n_features=4)),
        ('features.DigitClassifier.forward', features.DigitClassifier(4).eval(), dict(x=image(2, 1, 28, 28))),
        ('features.DigitClassifier.features', features.DigitClassifier(4).eval().features, dict(x=image(2, 1, 28, 28))),
        ('features.Extractor.__call__', extractor, dict(x=x)),
        ('features.Extractor.title', extractor.title, dict(name='FD')),
        ('experiment.Data', experiment.Data, dict(name='digits', root='here', size=4, download=False)),
        ('experiment.Data.load', experiment.Data().load, dict(split='test')),
        ('experiment.Objective', experiment.Objective, dict(part='smooth', kernel='GaussianKernel', sigma=.5, sigma_range=(.1, 1.), clean_noise=0.)),
        ('experiment.Network', experiment.Network, vars(experiment.Network())),
        ('experiment.Network.make', experiment.Network(n_filters=2, n_resnet=1, n_mix=1).make, dict(channels=1, size=(4, 4), objective=experiment.Objective())),
        ('experiment.Log', experiment.Log, vars(experiment.Log())),
        ('experiment.Recipe', experiment.Recipe, vars(recipe)),
        ('experiment.Experiment', experiment.Experiment, dict(recipe=recipe, out=Path('run'), resume=False)),
        ('experiment.quantity', experiment.quantity, dict(part='smooth', head='continuous')),
        ('checkpoint.load_plain', checkpoint.load_plain, dict(path=SAVED/'state.pt')),
        ('checkpoint.is_whole', checkpoint.is_whole, dict(path=SAVED/'state.pt')),
        ('checkpoint.write_whole', checkpoint.write_whole, dict(path=Path('file'), write=lambda f: f.write(b'it'))),
        ('checkpoint.write_sealed', checkpoint.write_sealed, dict(f=io.BytesIO(), write=lambda f: f.write(b'it'))),
        ('checkpoint.sweep', checkpoint.sweep, dict(folder=Path('folder'), name='file')),
        ('checkpoint.Checkpoints', checkpoint.Checkpoints, dict(folder=Path('checkpoints'), keep=2, settings=dict(a=1))),
        ('checkpoint.Checkpoints.save', checkpoint.Checkpoints(Path('more')).save, dict(step=3, state=state)),
        ('checkpoint.Checkpoints.load', kept.load, dict(step=1, free=())),
        ('checkpoint.check_settings', checkpoint.check_settings, dict(where='here', was=dict(a=1), now=dict(a=1), free=())),
        ('checkpoint.lock_folder', lambda **how: checkpoint.lock_folder(**how).__exit__(None, None, None), dict(folder=SAVED, name='.lock', wait=0.)),
        ('shards.run_shards', shards.run_shards, dict(out=Path('others'), sizes=[2, 1], work=lambda k: dict(x=np.zeros((2, 1, 2, 2))), settings={}, progress=False)),
        ('cells.as_time', cells.as_time, dict(seconds=100.)),
        ('cells.stated', cells.stated, dict(value=1.5, error=.1, digits=3)),
        ('cells.as_table', cells.as_table, dict(head=['a'], rows=[[1]])),
        ('cells.as_png', cells.as_png, dict(x=x, nrow=2)),
        ('cells.from_png', cells.from_png, dict(text=cells.as_png(x))),
        ('cells.load_result', cells.load_result, dict(name='table1', folder=SAVED)),
        ('cells.write_json', cells.write_json, dict(path=Path('file.json'), result=dict(a=1))),
        ('exercises.Exercise.__call__', exercises.check.bits_per_dim, dict(mine=lambda log_prob, dims: log_prob)),
        ('exercises.without_solutions', exercises.without_solutions, dict(nb=dict(cells=[]))),
        ('registry.load', registry.load, dict(path='distsmooth.engine.fused.gated')),
    ]

TABLES = of_networks, of_models, of_toys, of_layers, of_data
SAVED = Path('saved')

@pytest.fixture(scope='module', autouse=True)
def folder(tmp_path_factory):
    "Everything happens in a folder of its own, with a saved model, images and a state in it"
    before, here = os.getcwd(), tmp_path_factory.mktemp('fuzz')
    os.chdir(here)
    try:
        save()
        yield here
    finally: os.chdir(before)

def save():
    (SAVED/'images').mkdir(parents=True)
    for i in range(3): Image.fromarray(np.full((4, 4, 3), 90*i, np.uint8)).save(SAVED/'images'/f'{i}.png')
    torch.manual_seed(0)
    networks = dict(smooth=made.MADE((1, 3), (4,), 2), reverse=made.MADE((1, 3), (4,), 2, context_channels=1))
    pipeline.save_parts(SAVED, smoothing.GaussianKernel(.5), **networks)
    np.save(SAVED/'x.npy', image(2, 1, 1, 3).numpy())
    torch.save(dict(a=torch.zeros(2)), SAVED/'state.pt')
    checkpoint.Checkpoints(SAVED/'checkpoints').save(1, dict(a=torch.zeros(2)))
    cells.write_json(SAVED/'table1.json', dict(schema=cells.SCHEMA))

# what is put in an argument's place

class Thing: "Of no use anywhere"

def wrong_values(right):
    "Values of other types, sizes and kinds"
    values = [None, 'abc', '', b'abc', -1, 0, 1.5, math.nan, math.inf, 2**64, True, [], [1, 'a'], {}, (), Thing(), 1j, Path('nowhere/at all'), torch.tensor(3), np.zeros(3),
              lambda *args: None, torch.zeros(2, dtype=torch.long), torch.empty(0), torch.full((2, 2), math.nan), torch.zeros(1, 1, 1, 1, 1), torch.zeros(2, dtype=torch.complex64)]
    if isinstance(right, torch.Tensor) and right.is_floating_point():
        values += [right.long(), right*math.nan, right[:0], right[..., :1], right[0], right.numpy(), right.tolist(), right.to(torch.complex64), right*math.inf, right[None]]
    return values

# what comes of it

class Hang(BaseException): "It takes too long"

@contextmanager
def at_most(seconds):
    "Of this process's own time: the machine may be busy"
    def stop(*_): raise Hang
    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try: yield
    finally: signal.setitimer(signal.ITIMER_VIRTUAL, 0); signal.signal(signal.SIGVTALRM, before)

def sound(x, like, axes):
    "Is a result finite, of the right type, and of as many axes as the result of the right call, or as the wrong argument?"
    if isinstance(x, torch.Tensor):
        shaped = isinstance(like, torch.Tensor) and x.ndim in (like.ndim, axes) and x.is_floating_point() == like.is_floating_point()
        return shaped and bool(x.isfinite().all())
    if isinstance(x, np.ndarray): return isinstance(like, np.ndarray) and x.ndim in (like.ndim, axes) and bool(np.isfinite(x).all())
    if isinstance(x, (float, complex)): return isinstance(like, float) and math.isfinite(x)
    if isinstance(x, (list, tuple)): return isinstance(like, (list, tuple)) and all(sound(v, w, axes) for v, w in zip(x, like))
    return True

def named(error, name, value):
    "Does the message say which argument is wrong, by name or (a file) by what was given?"
    said = str(error)
    return bool(re.search(rf'\b{re.escape(name)}\b', said)) or isinstance(value, Path) and str(value) in said

def verdict(f, right, name, wrong, like):
    "'named', 'nameless', 'hangs', 'unsound' or 'sound', and what was said"
    try:
        with at_most(3), warnings.catch_warnings(), torch.random.fork_rng():
            warnings.simplefilter('ignore')
            found = f(**right | {name: wrong})
            said = f'{found!r:.100}'
    except Hang: return 'hangs', ''
    except Exception as e: return 'named' if named(e, name, wrong) else 'nameless', f'{type(e).__name__}: {e}'
    return ('sound' if sound(found, like, getattr(wrong, 'ndim', None)) else 'unsound'), said

def fuzz(sample):
    "Each argument of each call in turn, with some wrong values: rows (function, argument, value, verdict, what was said)"
    for table in TABLES:
        for key, f, right in table():
            with torch.random.fork_rng(), warnings.catch_warnings():
                warnings.simplefilter('ignore')
                like = f(**right)
            for name in right:
                for wrong in random.Random(f'{key} {name}').sample(wrong_values(right[name]), sample): yield key, name, wrong, *verdict(f, right, name, wrong, like)

# what is not called here, and why

OUTSIDE = {
    'the checks themselves': ['checks', 'logistic.check_levels'],
    'commands and their machinery, whose errors are usage errors: test_cli.py': ['cli', 'terminal'],
    'called for every pixel or every step by what has looked at its arguments': [
        'cached', 'incremental', 'fused', 'autoregressive.PixelSampler', 'autoregressive.Recompute', 'autoregressive.pixel_by_pixel', 'autoregressive.naive',
        *[f'autoregressive.Autoregressive.{name}' for name in ('encode', 'params', 'decoder')], 'autoregressive.ModelDistribution.rows', 'ladder.RungMarginal.rows',
        'conditional.StackedPixelCNNpp.decoder', *[f'pixelcnn.PixelCNNpp.{name}' for name in ('encode', 'decoder', 'params')], 'pixelcnn.with_ones',
        'pixelcnn.Streams', 'pixelcnn.Pair', *[f'masked.WeightNorm{name}' for name in ('', 'Conv2d', 'ConvTranspose2d')], 'training.Trainer.', 'training.seeded', 'training.compile_blocks', 'training.make_accelerator',
        'features.AsTheyAre', 'features.torchmetric', 'pipeline.write_all', 'pipeline.read_all', 'checkpoint.write_together', 'checkpoint.read_together', 'shards.take_folder'],
    'records, filled by the library': ['exercises.Verdict', 'exercises.Exercise', 'exercises.Checks', 'exercises.FieldExercise', 'features.Extractor', 'features.Features',
                                       'likelihood.BitsPerDim', 'metrics.Metric', 'metrics.Measured', 'metrics.Evaluation', 'training.State', 'cells.Cell', 'experiment.CSVLog'],
    'takes minutes, or what is not here: weights, data sets, a compiler': [
        'bench', 'bench_training', 'evaluate', 'study', 'study_*', 'page', 'data.celeba', 'features.lite0',
        'features.inception', 'experiment.fit', 'experiment.evaluate', 'experiment.sample_grid', 'experiment.Experiment.go', 'cells.run_cells'],
    'takes nothing that could be wrong, or anything': ['denoising.evaluating', 'plots.subplots', 'registry.faster', 'registry.plain', 'toys.Toy', 'data.Folder.label', 'experiment.recipe_names',
                                                       'cells.as_plain', 'cells.commit', 'cells.origin', 'cells.as_command', 'cells.as_result', 'cells.result_folders'],
}

def public():
    "'module.name' of every public function, class and method that takes something"
    for package in (distsmooth, distsmooth.engine):
        for m in pkgutil.iter_modules(package.__path__, package.__name__ + '.'):
            if m.ispkg or m.name.rpartition('.')[2].startswith('_'): continue
            module, short = import_module(m.name), m.name.rpartition('.')[2]
            for name in getattr(module, '__all__', ()):
                what = getattr(module, name)
                if callable(what): yield f'{short}.{name}'
                if inspect.isclass(what): yield from (f'{short}.{name}.{k}' for k in methods(what))

def methods(kind):
    own = {k: getattr(v, '__func__', v) for k, v in vars(kind).items() if not k.startswith('_')}
    return [k for k, v in own.items() if inspect.isfunction(v) and len(inspect.signature(v).parameters) > 1]

def test_every_public_name_is_called_or_there_is_a_reason():
    called, names = {key for table in TABLES for key, *_ in table()}, set(public())
    for reason in sum(OUTSIDE.values(), []):
        assert any(covers(reason, name) for name in names), f'{reason} is not there any more'
    assert not [n for n in sorted(names - called) if not any(covers(o, n) for o in sum(OUTSIDE.values(), []))]

def covers(outside, name): return fnmatch(name, outside) or fnmatch(name, outside.rstrip('.') + '.*')

# the measure

SAMPLE, WANTED = 3, .9

def holds_nothing_finite(x): return isinstance(x, (torch.Tensor, float)) and not torch.as_tensor(x).isfinite().all()

PASSES_ON = {'logistic.quantize', 'logistic.log_sigmoid_diff', 'logistic.LogisticMixture.log_prob', 'logistic.LogisticMixture.cdf', 'made.MaskedLinear.forward', 'made.MADE.forward',
             'pixelcnn.PixelCNNpp.forward', 'conditional.StackedPixelCNNpp.forward', 'blocks.GatedResidual.forward', 'blocks.ContextEncoder.forward', 'blocks.concat_elu',
             'blocks.gated', 'blocks.dropout', 'blocks.Dropout.forward', 'masked.padded', 'masked.MaskedConv2d.forward', 'masked.ShiftedConv2d.forward',
             'masked.ShiftedConvTranspose2d.forward', 'training.raw_objective', 'training.to_device', 'training.Trainer.losses', 'features.Extractor.__call__', 'features.DigitClassifier.forward',
             'features.DigitClassifier.features', 'plots.image_grid', 'autoregressive.Autoregressive.mixture'}  # arithmetic: NaN and infinity go through, and whoever called it looks

@posix
def test_errors_name_the_argument_and_what_comes_without_one_is_a_result():
    rows = [row for row in fuzz(SAMPLE) if not (row[0] in PASSES_ON and row[3] == 'unsound' and holds_nothing_finite(row[2]))]
    counts = Counter(row[3] for row in rows)
    said = [f'{key}({name}={value!r:.60}): {said:.100}' for key, name, value, how, said in rows if how in ('hangs', 'unsound')]
    assert not said, said
    nameless = [f'{key}({name}={value!r:.60}): {said:.100}' for key, name, value, how, said in rows if how == 'nameless']
    assert counts['named'] > 1000 and counts['named'] >= WANTED*(counts['named'] + counts['nameless']), nameless

def test_the_measure_sees_what_is_wrong(monkeypatch):
    "Without its checks, a function fails the measure"
    kernel = smoothing.GaussianKernel(.5)
    unchecked = smoothing.bias_variance.__wrapped__
    right = dict(density=lambda x: np.exp(-x**2), kernel=kernel, n=10, grid=np.linspace(-2, 2, 101))
    like = unchecked(**right)
    assert verdict(unchecked, right, 'density', 'abc', like)[0] == 'nameless' and verdict(smoothing.bias_variance, right, 'density', 'abc', like)[0] == 'named'
    assert verdict(unchecked, right, 'n', .1, like)[0] == 'sound' and verdict(smoothing.bias_variance, right, 'n', .1, like)[0] == 'named'
    assert verdict(lambda x: x*math.nan, dict(x=1.), 'x', 2., 1.)[0] == 'unsound' and verdict(lambda x: x[None], dict(x=rand(2)), 'x', rand(3), rand(2))[0] == 'unsound'
    assert verdict(lambda x: sum(0 for _ in iter(int, 1)), dict(x=1), 'x', 2, 1)[0] == 'hangs'
