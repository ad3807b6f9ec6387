// The playground: knobs, digits that appear line by line, the mixture behind each pixel, and a half to be completed.
// Joined behind sampler.js, whose `load`, `connect` and `fromBase64` it uses; an anywidget module, and the script of play.html.
const STYLE = `
.ds {--ink: light-dark(#1b1b1f, #e8e8ee); --soft: light-dark(#5b5b66, #a9a9b6); --line: light-dark(#c9c9d2, #4a4a55); --paper: light-dark(#fff, #16161a);
  --box: light-dark(#f4f4f7, #222228); --accent: light-dark(#1f5fbf, #8ab4f8); --mark: light-dark(#b3261e, #ff8a80); color-scheme: light dark;
  color: var(--ink); background: var(--paper); font: 15px/1.45 system-ui, sans-serif; max-width: 60rem; box-sizing: border-box; padding: .5rem}
[data-jp-theme-light="true"] .ds, .vscode-light .ds, [theme=light] .ds {color-scheme: light}
[data-jp-theme-light="false"] .ds, .vscode-dark .ds, [theme=dark] .ds {color-scheme: dark}
.ds * {box-sizing: border-box}
.ds [hidden] {display: none !important}
.ds h2 {font-size: 1.05rem; margin: 1.4rem 0 .3rem}
.ds p {margin: .3rem 0}
.ds .soft {color: var(--soft); font-size: .9rem}
.ds .knobs {display: grid; grid-template-columns: repeat(auto-fit, minmax(15rem, 1fr)); gap: .6rem 1.5rem; background: var(--box); border: 1px solid var(--line); border-radius: .5rem; padding: .7rem .9rem; margin: .6rem 0}
.ds .knobs .wide {grid-column: 1 / -1}
.ds .first {position: sticky; top: 0; z-index: 1}
.ds label, .ds legend {font-weight: 600}
.ds output {font-variant-numeric: tabular-nums}
.ds .ends {display: flex; align-items: center; gap: .6rem; margin-top: .25rem; color: var(--soft)}
.ds input[type=range] {flex: 1; width: 100%; min-width: 0; height: 1.8rem; accent-color: var(--accent); margin: 0}
.ds input[type=number] {width: 6.5rem}
.ds button, .ds select, .ds input[type=number] {font: inherit; color: inherit; background: var(--paper); border: 1px solid var(--soft); border-radius: .35rem; padding: .25rem .6rem; min-height: 2rem}
.ds button {cursor: pointer}
.ds fieldset {border: 0; padding: 0; margin: 0}
.ds legend {padding: 0}
.ds fieldset label {font-weight: 400; margin-right: 1rem; display: inline-flex; gap: .4rem; align-items: baseline; padding: .15rem 0}
.ds :focus-visible {outline: 3px solid var(--accent); outline-offset: 2px}
.ds figure {margin: .5rem 0}
.ds figcaption {font-size: .92rem; margin-bottom: .15rem}
.ds .strip {position: relative; line-height: 0; touch-action: pan-y}
.ds canvas {width: 100%; image-rendering: pixelated; display: block}
.ds .strip.live canvas {cursor: crosshair}
.ds .cursor {position: absolute; border: 2px solid #ff5a4f; outline: 1px solid #fff; pointer-events: none}
.ds .mixture .plot {max-width: 40rem; padding: 0 2rem; min-height: 12.5rem}
.ds .mixture svg {width: 100%; height: 11rem; display: block}
.ds .ticks {position: relative; height: 1.4rem}
.ds .ticks span {position: absolute; transform: translateX(-50%); white-space: nowrap}
.ds .complete {display: grid; grid-template-columns: minmax(0, 14rem) minmax(0, 1fr); gap: .4rem 1.5rem}
.ds .complete .results {max-width: 34rem}
.ds .pad {position: relative; touch-action: none; max-width: 14rem}
.ds .pad canvas {background: #000; cursor: crosshair; border: 1px solid var(--soft)}
.ds .pad .below {position: absolute; inset: 50% 0 0 0; pointer-events: none; border-top: 2px dashed #ff5a4f; color: #fff; display: grid; place-items: center; font-size: .9rem}
.ds .row {display: flex; flex-wrap: wrap; gap: .5rem; margin: .4rem 0; align-items: center}
@media (max-width: 34rem) {.ds .complete {grid-template-columns: minmax(0, 1fr)}}
`;

const MARKUP = `
<p class="intro">A network draws digits <em>with noise on them</em>, pixel by pixel. A second network takes the noise away. Turn the knob: how much noise is best? Try both ends of it. Then choose <em>morph</em>, and turn it slowly.</p>
<div class="knobs first">
  <div class="wide"><label for="ds-sigma">noise level sigma</label> <output for="ds-sigma"></output>
    <div class="ends"><span>sharp</span><input type="range" id="ds-sigma" step="0.05"><span>smooth</span></div></div>
  <div class="wide classes row" style="margin: 0"><label for="ds-label">draw</label><select id="ds-label"></select></div>
</div>
<div class="knobs">
  <div><label for="ds-temperature">temperature</label> <output for="ds-temperature"></output>
    <div class="ends"><span>likely</span><input type="range" id="ds-temperature" min="0.5" max="1.2" step="0.05"><span>wild</span></div></div>
  <div><label for="ds-seed">seed</label><div class="row" style="margin: 0"><input type="number" id="ds-seed" min="0" max="4294967295" step="1"><button type="button" class="again">other digits</button></div></div>
  <fieldset class="wide"><legend>when a knob turns, the digits</legend>
    <label><input type="radio" name="ds-transform" value="choice"> reshuffle: a component is chosen (choice)</label>
    <label><input type="radio" name="ds-transform" value="icdf"> morph: each pixel moves smoothly (icdf)</label></fieldset>
</div>
<p class="status soft" role="status"></p>
<figure class="clean"><figcaption><b>clean</b>: real digits, for comparison</figcaption><div class="strip"><canvas role="img" aria-label="real digits"></canvas></div></figure>
<figure class="smooth"><figcaption><b>smoothed</b>: drawn by the first network, noise and all</figcaption><div class="strip live"><canvas tabindex="0" role="img"></canvas><div class="cursor" hidden></div></div></figure>
<figure class="reverse"><figcaption><b>two-step</b>: drawn by the second network, which looks at the row above</figcaption><div class="strip live"><canvas tabindex="0" role="img"></canvas><div class="cursor" hidden></div></div></figure>
<p class="soft lesson">At the sharp end the first network draws nearly clean digits, and one wrong pixel leads the next ones astray. At the smooth end it is hard to go wrong, but little of the digit is left for the second network.</p>
<h2>What was this pixel drawn from?</h2>
<p>Point at a pixel of a drawn digit, or go to a row with the Tab key and move with the arrow keys.</p>
<div class="mixture"><p class="what"></p><div class="plot"></div></div>
<h2>Finish what I began</h2>
<p>Draw the upper half of a digit. The lower half is drawn four times: by way of noise<span class="without">, and without it</span>.</p>
<div class="complete"><div><div class="pad"><canvas tabindex="0" role="img" aria-label="drawing pad, upper half: arrow keys move the pen, Space puts ink, Backspace takes it away"></canvas><div class="cursor" hidden></div><div class="below">the network's half</div></div>
<div class="row"><button type="button" class="example">a real half</button><button type="button" class="clear">clear</button></div></div>
<div class="results"><figure class="detour"><figcaption><b>with the detour</b>: your half is made noisy, completed, and cleaned</figcaption><div class="strip"><canvas role="img"></canvas></div></figure>
<figure class="direct"><figcaption><b>without</b>: a network of clean digits goes on from your half</figcaption><div class="strip"><canvas role="img"></canvas></div></figure><p class="status soft" role="status"></p></div></div>
`;

const GAP = 2;
const TURNED = ['sigma', 'label', 'temperature', 'seed', 'transform'];  // what is drawn anew for

// A row of images on one canvas; whole images, or one line of all of them
function makeStrip(figure, shape) {
  const canvas = figure.querySelector('canvas'), context = canvas.getContext('2d'), [C, H, W] = shape, cursor = figure.querySelector('.cursor');
  const strip = {canvas, n: 0, cursor};
  canvas.ariaLabel ??= figure.textContent;  // until there is more to be said
  strip.resize = n => {
    if (strip.n === n) return;
    strip.n = n;
    canvas.width = n*(W + GAP) - GAP;
    canvas.height = H;
    canvas.style.maxWidth = `${canvas.width*140/W}px`;
  };
  strip.line = (row, values) => {  // (n, C, W) in [-1, 1]
    const pixels = context.createImageData(W, 1);
    for (let b = 0; b < strip.n; b++) {
      for (let j = 0; j < W; j++) for (let c = 0; c < 4; c++)
        pixels.data[4*j + c] = c === 3 ? 255 : (values[(b*C + (C === 3 ? c : 0))*W + j] + 1)*127.5;  // rounded there
      context.putImageData(pixels, b*(W + GAP), row);
    }
  };
  strip.images = values => {  // (n, C, H, W)
    for (let i = 0; i < H; i++) {
      const row = new Float32Array(strip.n*C*W);
      for (let q = 0; q < strip.n*C; q++) row.set(values.subarray((q*H + i)*W, (q*H + i + 1)*W), q*W);
      strip.line(i, row);
    }
  };
  strip.fade = () => {  // what is still to be drawn anew
    context.fillStyle = 'rgb(110 110 120 / .6)';
    for (let b = 0; b < strip.n; b++) context.fillRect(b*(W + GAP), 0, W, H);
  };
  strip.find = event => {  // the pixel under the pointer
    const box = canvas.getBoundingClientRect(), x = (event.clientX - box.left)/box.width*canvas.width, y = (event.clientY - box.top)/box.height*H;
    const image = Math.floor(x/(W + GAP)), column = Math.min(Math.floor(x - image*(W + GAP)), W - 1), row = Math.floor(y);
    return image >= 0 && image < strip.n && row >= 0 && row < H ? {image, row, column} : null;
  };
  strip.mark = ({image, row, column}) => {
    const {width: w} = canvas, percent = (v, of) => `${100*v/of}%`, box = canvas.getBoundingClientRect(), whole = cursor.parentElement.getBoundingClientRect();
    cursor.hidden = false;
    cursor.style.width = `${Math.max(box.width/w + 4, 8)}px`; cursor.style.height = cursor.style.width;
    const size = parseFloat(cursor.style.width);
    cursor.style.left = `${box.left - whole.left + (image*(W + GAP) + column + .5)*box.width/w - size/2}px`;
    cursor.style.top = `${(row + .5)*box.height/H - size/2}px`;
  };
  return strip;
}

const number = v => (Math.abs(v) < .005 ? 0 : v).toFixed(2).replace('-', '\u2212');

// What a mixture {weights, means, scales, values, discretized} expects, as a picture over `ends`. A step of the picture
// has the mass that falls into it, so that no narrow peak is missed; on 8 bits the ends take what lies beyond them
function drawMixture(m, ends, names) {
  const w = 640, h = 156, base = 150, [low, high] = ends, at = x => (x - low)/(high - low)*w, steps = m.discretized ? 256 : 320;
  const cdf = (v, k) => 1/(1 + Math.exp(-(v - m.means[k])/m.scales[k])), edge = i => low + (high - low)*i/steps;
  const below = (i, k) => m.discretized && i === 0 ? 0 : m.discretized && i === steps ? 1 : cdf(edge(i), k);
  const curves = m.weights.map((weight, k) => Array.from({length: steps}, (_, i) => weight*(below(i + 1, k) - below(i, k))));
  const total = curves[0].map((_, i) => curves.reduce((sum, c) => sum + c[i], 0)), most = Math.max(...total);
  const between = Math.max(...total.slice(1, -1)), top = between > most/200 ? between : most;  // what is exactly black may stick out: it is said in words
  const path = ys => `M0 ${base}` + ys.map((y, i) => `V${(base - 140*Math.min(y/top, 1.05)).toFixed(1)}H${(w*(i + 1)/steps).toFixed(1)}`).join('');
  const value = Math.min(Math.max(m.values[0], low), high), ticks = [-1, 0, 1];
  return `<svg viewBox="0 0 ${w} ${h}" preserveAspectRatio="none" role="img" aria-label="how likely each value was, with the drawn value marked">
    <path d="${path(total)}V${base}Z" fill="var(--accent)" opacity=".3"/>
    ${curves.map(c => `<path d="${path(c)}" fill="none" stroke="var(--accent)" vector-effect="non-scaling-stroke"/>`).join('')}
    <path d="M0 ${base}H${w}" stroke="var(--soft)" vector-effect="non-scaling-stroke"/>
    ${ticks.map(t => `<path d="M${at(t)} ${base}v6" stroke="var(--soft)" vector-effect="non-scaling-stroke"/>`).join('')}
    <path d="M${at(value)} 4V${base}" stroke="var(--mark)" stroke-width="2" vector-effect="non-scaling-stroke"/></svg>
    <div class="ticks soft">${ticks.map(t => `<span style="left: ${100*at(t)/w}%">${names[t + 1]}${m.discretized && t ? ` ${Math.round(100*total[t < 0 ? 0 : steps - 1])}\u00a0%` : ''}</span>`).join('')}</div>`;
}

const GREYS = ['black', 'grey', 'white'], REDS = ['no red', 'half', 'all red'];

function sayMixture(m, {image, row, column}, name, ends) {
  const order = m.weights.map((_, k) => k).sort((a, b) => m.weights[b] - m.weights[a]).filter(k => m.weights[k] > .02).slice(0, 4);
  const [black, , white] = ends, drawn = m.values.map((v, c) => (m.values.length > 1 ? `${['red', 'green', 'blue'][c]} ` : '') + number(v));
  const place = v => m.discretized && v <= -1 ? `${black} or beyond` : m.discretized && v >= 1 ? `${white} or beyond` : `around ${number(v)}`;
  const parts = order.map(k => `${Math.round(100*m.weights[k])}\u00a0% ${place(m.means[k])} (scale ${m.scales[k].toFixed(3)})`);
  return `Digit ${image + 1}, row ${row + 1}, column ${column + 1}, ${name}: drawn ${drawn.join(', ')}${drawn.length > 1 ? '; its red is' : ','} the red line. ` +
    `Expected, from the pixels before it: ${parts.join(', ')}. ${black[0].toUpperCase()}${black.slice(1)} is \u22121, ${white} is 1.`;
}

const NOISE = {  // a number in (0, 1) as noise of standard deviation 1, by the kernel's name
  GaussianKernel: (u, v) => Math.sqrt(-2*Math.log(1 - u))*Math.cos(2*Math.PI*v),
  LaplaceKernel: u => Math.sign(u - .5)*Math.log(1 - 2*Math.abs(u - .5))/-Math.SQRT2,
  UniformKernel: u => (2*u - 1)*Math.sqrt(3),
};

// A sampler that sends the work to the Python kernel, for networks that cannot be exported
function kernelPort(model) {
  const channel = Math.random().toString(36).slice(2);  // all ports hear all answers: each takes its own
  const port = {
    postMessage({id, options: {uniforms = [], known = [], mask, ...options} = {}, ...message}) {
      const arrays = [...uniforms, ...known, ...(mask ? [Float32Array.from(mask)] : [])];
      model.send({...message, id: [channel, id], options, counts: [uniforms.length, known.length, mask ? 1 : 0]}, undefined, arrays.map(a => a.buffer));
    },
    close() { port.postMessage({id: 0, kind: 'close'}); model.off('msg:custom', hear); },
  };
  const hear = ({id: [whose, id], ...answer}, [buffer]) => {
    if (whose !== channel) return;
    const message = {...answer, id};
    const values = buffer && new Float32Array(buffer.buffer.slice(buffer.byteOffset, buffer.byteOffset + buffer.byteLength));
    port.onmessage({data: message.item ? {...message, item: {...message.item, values}} : {...message, value: values ?? message.value}});
  };
  model.on('msg:custom', hear);
  return port;
}

const bytesIn = view => new Uint8Array(view.buffer, view.byteOffset, view.byteLength);

function render({model, el}) {
  const about = model.get('about'), shape = about.shape, [C, H, W] = shape, dims = C*H*W;
  const root = document.createElement('section'), $ = selector => root.querySelector(selector);
  root.className = 'ds';
  const clean = bytesIn(model.get('clean')), digits = clean.length/dims;  // real ones, if it is digits that this model draws
  const called = text => digits ? text : text.replaceAll('digit', 'image').replaceAll('Digit', 'Image');
  root.setAttribute('aria-label', called('playground: digits drawn at a noise level of your choice'));
  root.innerHTML = `<style>${STYLE}</style>${called(MARKUP)}`;
  const id = `ds${Math.random().toString(36).slice(2, 8)}`;  // several playgrounds may stand in one notebook
  for (const e of root.querySelectorAll('[id^=ds-]')) e.id = e.id.replace('ds', id);
  for (const e of root.querySelectorAll('[for^=ds-]')) e.setAttribute('for', e.getAttribute('for').replace('ds', id));
  for (const e of root.querySelectorAll('[name^=ds-]')) e.name = e.name.replace('ds', id);
  // JupyterLab's shortcuts are for what has the focus, and come first: each of these keeps its own keys
  for (const e of root.querySelectorAll('input, select, button, [tabindex]')) e.setAttribute('data-lm-suppress-shortcuts', 'true');
  el.append(root);

  const strips = Object.fromEntries(['clean', 'smooth', 'reverse', 'detour', 'direct'].map(name => [name, makeStrip($(`.${name}`), shape)]));
  const two = about.denoise, direct = 'raw' in about.parts, names = C === 3 ? REDS : GREYS;
  const byHand = two && C === 1;  // a pad of black and white
  $('figure.reverse').hidden = !two;
  $('figure.direct').hidden = $('.without').hidden = !direct;
  for (const e of [$('.complete'), $('.complete').previousElementSibling, $('.complete').previousElementSibling.previousElementSibling]) e.hidden = !byHand;
  const digit = i => Float32Array.from(clean.subarray((i % digits)*dims, (i % digits + 1)*dims), v => v/127.5 - 1);
  $('figure.clean').hidden = !digits;
  $('.example').hidden = !digits;

  const narrow = el.clientWidth && el.clientWidth < 560, n = narrow ? 4 : 8;
  for (const name of ['clean', 'smooth', 'reverse']) strips[name].resize(n);
  for (const name of ['detour', 'direct']) strips[name].resize(4);

  // the knobs
  const knobs = {sigma: $(`#${id}-sigma`), temperature: $(`#${id}-temperature`), seed: $(`#${id}-seed`), label: $(`#${id}-label`)};
  const [low, high] = about.sigma_range ?? [about.sigma, about.sigma];
  Object.assign(knobs.sigma, {min: low, max: high, disabled: low === high});
  $('.classes').hidden = !about.classes;
  knobs.label.append(...(about.classes ?? []).map((name, k) => new Option(name, k)));
  $('.intro').hidden = $('.lesson').hidden = !two || low === high;  // what they say needs both networks, and a knob to turn
  const radios = [...root.querySelectorAll('[type=radio]')], knob = name => model.get(name);
  const show = () => {
    for (const name of ['sigma', 'temperature']) {
      knobs[name].value = knob(name);
      $(`output[for=${id}-${name}]`).textContent = knob(name).toFixed(2);
      knobs[name].setAttribute('aria-valuetext', `${name} ${knob(name).toFixed(2)}`);
    }
    knobs.seed.value = knob('seed');
    knobs.label.value = knob('label');
    radios.forEach(r => { r.checked = r.value === knob('transform'); });
  };
  const turn = (name, value) => { model.set(name, value); model.save_changes(); };
  for (const name of ['sigma', 'temperature']) knobs[name].addEventListener('input', () => turn(name, +knobs[name].value));
  knobs.seed.addEventListener('change', () => turn('seed', Math.min(Math.max(Math.round(+knobs.seed.value) || 0, 0), 2**32 - 1)));
  knobs.label.addEventListener('change', () => turn('label', +knobs.label.value));
  $('.again').addEventListener('click', () => turn('seed', (knob('seed') + 1) % 2**32));
  radios.forEach(r => r.addEventListener('change', () => turn('transform', r.value)));

  // the digits
  let samplers = {}, state = 0, gone = false;
  const sampler = which => samplers[which] ??= about.kernel === 'python' ? connect(kernelPort(model), null, about)
                                                                         : load(bytesIn(model.get('weights')));
  const status = text => { $('.status').textContent = text; };
  const showClean = () => {
    const values = new Float32Array(n*dims);
    for (let b = 0; digits && b < n; b++) values.set(digit(knob('seed')*n + b), b*dims);
    if (digits) strips.clean.images(values);
  };
  const describe = (name, text) => { strips[name].canvas.ariaLabel = text; };
  async function drawAll() {
    const mine = ++state, settings = {sigma: knob('sigma'), label: knob('label'), temperature: knob('temperature'), transform: knob('transform')};
    const things = about.classes ? `${about.classes[settings.label]}, ${n} times,` : called(`${n} digits`);
    root.dataset.state = 'drawing';
    show(), showClean();
    clearTimeout(timer), completing++, samplers.second?.then(s => s.cancel()).catch(() => {});  // it comes again, after these digits
    try {
      const s = await sampler('main');
      if (mine !== state || gone) return;
      for (const name of ['smooth', 'reverse']) {
        strips[name].fade();
        describe(name, `${things} ${name === 'smooth' ? 'smoothed' : 'two-step'}, at sigma ${settings.sigma.toFixed(2)}: arrow keys move from pixel to pixel`);
      }
      status('drawing \u2026');
      const start = performance.now();
      const uniforms = s.uniforms(8, knob('seed')).map(u => u.slice(0, n*u.length/8));  // the same digits at any width
      await s.sample({...settings, uniforms, denoise: two ? 'two_step' : null,
                      onRow: (row, values, part) => { if (mine === state) strips[part].line(row, values); }});
      if (mine !== state) return;
      const where = {python: 'by the Python kernel', plain: 'in plain JavaScript'}[s.about.kernel] ?? 'in this browser';
      status(`${things} at sigma ${settings.sigma.toFixed(2)}, drawn ${where} in ${((performance.now() - start)/1000).toFixed(1)} s`);
      root.dataset.state = 'ready';
      look(looking.name, looking.where, 'off');
      if (byHand) completeAgain();
    } catch (error) {
      if (mine === state && error.name !== 'AbortError') status(called(`no digits: ${error.message}`));
    }
  }

  // the mixture behind a pixel
  const center = {image: 0, row: H >> 1, column: W >> 1};
  let looking = {name: 'smooth', where: center};
  async function look(name, where, live = 'polite') {  // said aloud where it was asked for
    looking = {name, where};
    for (const other of ['smooth', 'reverse']) strips[other].cursor.hidden = other !== name;
    strips[name].mark(where);
    const s = await sampler('main'), m = await s.mixture({part: name, ...where});
    if (looking.where !== where) return;
    const spread = m?.discretized ? 1 + 1/255 : 1.2 + 2*knob('sigma');
    $('.mixture .what').ariaLive = live;
    $('.mixture .what').textContent = m ? called(sayMixture(m, where, name === 'smooth' ? 'smoothed' : 'two-step', names)) : 'This pixel is not drawn yet.';
    $('.mixture .plot').innerHTML = m ? drawMixture(m, [-spread, spread], names) : '';
  }
  for (const name of ['smooth', 'reverse']) {
    const {canvas} = strips[name];
    const point = event => { const where = strips[name].find(event); if (where) look(name, where); };
    canvas.addEventListener('pointermove', point);
    canvas.addEventListener('pointerdown', point);
    canvas.addEventListener('keydown', event => {
      const step = {ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0]}[event.key];
      if (!step) return;
      event.preventDefault();
      const {image, row, column} = looking.name === name ? looking.where : center, x = image*W + column + step[1];
      const inside = Math.min(Math.max(x, 0), n*W - 1);
      look(name, {image: Math.floor(inside/W), row: Math.min(Math.max(row + step[0], 0), H - 1), column: inside % W});
    });
  }

  // the half that is drawn by hand
  const pad = makeStrip($('.pad'), shape), ink = new Float32Array(dims).fill(-1), half = H >> 1;
  pad.resize(1);
  pad.canvas.style.maxWidth = '';
  let begun = false, completing = 0, pen = {image: 0, row: half >> 1, column: W >> 1}, stroke = null, examples = 0, timer = null;
  const put = (row, column, value) => {  // a soft dot
    begun = true;
    for (let i = 0; i < half; i++) for (let j = 0; j < W; j++) {
      const d = Math.hypot(i + .5 - row, j + .5 - column), v = 1 - 2*Math.min(Math.max((d - .9)/1.1, 0), 1);
      for (let c = 0; c < C; c++) {
        const at = (c*H + i)*W + j;
        ink[at] = value > 0 ? Math.max(ink[at], v) : Math.min(ink[at], -v);
      }
    }
    pad.images(ink);
  };
  const soon = () => { clearTimeout(timer); timer = setTimeout(completeAgain, 250); };
  const place = event => {
    const box = pad.canvas.getBoundingClientRect();
    return [(event.clientY - box.top)/box.height*H, (event.clientX - box.left)/box.width*W];
  };
  pad.canvas.addEventListener('pointerdown', event => { pad.canvas.setPointerCapture(event.pointerId); stroke = place(event); put(...stroke, 1); event.preventDefault(); });
  pad.canvas.addEventListener('pointermove', event => {
    if (!stroke) return;
    const to = place(event), steps = Math.ceil(Math.hypot(to[0] - stroke[0], to[1] - stroke[1])*2) || 1;
    for (let q = 1; q <= steps; q++) put(stroke[0] + (to[0] - stroke[0])*q/steps, stroke[1] + (to[1] - stroke[1])*q/steps, 1);
    stroke = to;
  });
  for (const name of ['pointerup', 'pointercancel']) pad.canvas.addEventListener(name, () => { if (stroke) { stroke = null; soon(); } });
  pad.canvas.addEventListener('keydown', event => {
    const step = {ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0], ' ': [0, 0], Backspace: [0, 0]}[event.key];
    if (!step) return;
    event.preventDefault();
    pen = {image: 0, row: Math.min(Math.max(pen.row + step[0], 0), half - 1), column: Math.min(Math.max(pen.column + step[1], 0), W - 1)};
    pad.mark(pen);
    if (event.key === ' ' || event.key === 'Backspace') { put(pen.row + .5, pen.column + .5, event.key === ' ' ? 1 : -1); soon(); }
  });
  pad.canvas.addEventListener('blur', () => { pad.cursor.hidden = true; });
  const example = () => { begun = true; ink.fill(-1); const d = digit(7*++examples); for (let q = 0; q < C; q++) ink.set(d.subarray(q*H*W, q*H*W + half*W), q*H*W); pad.images(ink); };
  $('.example').addEventListener('click', () => { example(); completeAgain(); });
  $('.clear').addEventListener('click', () => { begun = true; ink.fill(-1); pad.images(ink); soon(); });

  async function completeAgain() {
    const mine = ++completing, note = $('.complete .status'), sigma = knob('sigma'), count = 4;
    if (digits && !begun) example();
    try {
      const s = await sampler('second');
      if (mine !== completing || gone) return;
      const mask = new Uint8Array(H*W).fill(1, 0, half*W), uniforms = s.uniforms(count, knob('seed')), noise = s.uniforms(count, knob('seed') + 1);
      const x = new Float32Array(count*dims), noisy = x.map((_, i) => ink[i % dims] + sigma*NOISE[about.noise](noise[0][i], noise[1][i]));
      x.forEach((_, i) => { x[i] = ink[i % dims]; });
      const to = (name, part) => (row, values, drawn) => { if (mine === completing && drawn === part) strips[name].line(row, values); };
      const settings = {temperature: knob('temperature'), transform: knob('transform'), sigma, label: knob('label'), mask};
      strips.detour.fade(), strips.direct.fade();
      note.textContent = 'completing \u2026';
      await s.sample({...settings, uniforms, known: [noisy, x], onRow: to('detour', 'reverse')});
      if (direct && mine === completing) await s.sample({...settings, uniforms, denoise: null, part: 'raw', known: [x, x], onRow: to('direct', 'raw')});
      if (mine !== completing) return;
      note.textContent = `completed at sigma ${sigma.toFixed(2)}`;
      describe('detour', 'four completions of your half, by way of noise');
      describe('direct', 'four completions of your half, without noise');
    } catch (error) {
      if (mine === completing && error.name !== 'AbortError') note.textContent = `not completed: ${error.message}`;
    }
  }
  pad.images(ink);

  // first a still picture, if there is one for these settings
  const still = model.get('still');
  show(), showClean();
  if (still?.n >= n) for (const name of ['smooth', 'reverse']) if (still[name])
    strips[name].images(Float32Array.from(fromBase64(still[name]).subarray(0, n*dims), v => v/127.5 - 1));
  for (const name of TURNED) model.on(`change:${name}`, drawAll);
  requestAnimationFrame(() => setTimeout(drawAll, 0));
  return () => {
    gone = true;
    for (const name of TURNED) model.off(`change:${name}`, drawAll);
    for (const s of ['main', 'second']) samplers[s]?.then(s => s.close(), () => {});
  };
}

export default {render};
