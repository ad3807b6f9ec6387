// Draws from a PixelCNN++ pair that is told sigma, and a class if it knows some, in a browser: `load(source)`, then `sampler.sample({...})`.
// `core` is all that runs in the worker: it is sent there as text, so that one file is enough, from disk too.
const KERNELS = {simd: 'AGFzbQEAAAABGwJgCX9/f39/f39/fwBgC39/f39/f39/f39/AAMFBAEAAAAFAwEAAQcnBQRnZW1tAAAEY2VsdQADBWdhdGVkAAEEY29weQACBm1lbW9yeQIACvkQBKoHAgt/C3sgB0EGdCESA0AgCCARSwRAQQAhEANAIAogEEsEQCAAIAEgEGxqIQ4gAyAEIBBsaiEPQQAhDQNAIA1BAmogCU0EQCAFIA9qIRMgDv0ABAAhFyAO/QAEECEYIA79AAQgIRYgDv0ABDAhGSACIA5qIhX9AAQAIRogFf0ABBAhGyAV/QAEICEcIBX9AAQwIR0gBiELQQAhDANAIAcgDEsEQCAL/QAEACIeIAxBAnQiFCAPav0JAgAiH/3mASAX/eQBIRcgHiATIBRq/QkCACIe/eYBIBr95AEhGiAL/QAEECIgIB/95gEgGP3kASEYICAgHv3mASAb/eQBIRsgC/0ABCAiICAf/eYBIBb95AEhFiAgIB795gEgHP3kASEcIAv9AAQwIiAgH/3mASAZ/eQBIRkgICAe/eYBIB395AEhHSAMQQFqIQwgC0FAayELDAELCyAOIBf9CwQAIA4gGP0LBBAgDiAW/QsEICAOIBn9CwQwIBUgGv0LBAAgFSAb/QsEECAVIBz9CwQgIBUgHf0LBDAgDUECaiENIA4gAkEBdGohDiAPIAVBAXRqIQ8MAQsLIAkgDUcEQCAO/QAEACEZIA79AAQQIRYgDv0ABCAhFyAO/QAEMCEY/QwAAAAAAAAAAAAAAAAAAAAAIRr9DAAAAAAAAAAAAAAAAAAAAAAhG/0MAAAAAAAAAAAAAAAAAAAAACEc/QwAAAAAAAAAAAAAAAAAAAAAIR0gBiENQQAhCwNAIAtBAmoiDCAHTQRAIA39AAQAIA8gC0ECdGoiC/0JAgAiHv3mASAZ/eQBIRkgDf0ABEAgC/0JAgQiH/3mASAa/eQBIRogDf0ABBAgHv3mASAW/eQBIRYgDf0ABFAgH/3mASAb/eQBIRsgDf0ABCAgHv3mASAX/eQBIRcgDf0ABGAgH/3mASAc/eQBIRwgDf0ABDAgHv3mASAY/eQBIRggDf0ABHAgH/3mASAd/eQBIR0gDCELIA1BgAFqIQ0MAQsLIAcgC0sEQCAN/QAEACAPIAtBAnRq/QkCACIe/eYBIBn95AEhGSAN/QAEICAe/eYBIBf95AEhFyAN/QAEMCAe/eYBIBj95AEhGCAN/QAEECAe/eYBIBb95AEhFgsgDiAZIBr95AH9CwQAIA4gFiAb/eQB/QsEECAOIBcgHP3kAf0LBCAgDiAYIB395AH9CwQwCyAQQQFqIRAMAQsLIBFBEGohESAGIBJqIQYgAEFAayEADAELCwutBAIDewZ/IAZBAnQhDgNAIAggDUsEQEEAIQwDQCAHIAxLBEAgACABIA1saiACIAxsaiEQIAMgBCANbGogBSAMbGohD0EAIQYDQCAGIA5JBEAgDiAPaiAGav0ABAAiCSAJ/eEB/egB/QwAAK7CAACuwgAArsIAAK7C/ekBIgr9DDuquD87qrg/O6q4PzuquD/95gH9aiELIAYgEGoiESAR/QAEACAGIA9q/QAEAP0MAACAPwAAgD8AAIA/AACAP/0MZ2lQOWdpUDlnaVA5Z2lQOSAKIAv9DACAMT8AgDE/AIAxPwCAMT/95gH95QEgC/0Mg4BeuYOAXrmDgF65g4Beuf3mAf3lASIK/eYB/QzOQ7c6zkO3Os5DtzrOQ7c6/eQBIAr95gH9DAiJCDwIiQg8CIkIPAiJCDz95AEgCv3mAf0MwakqPcGpKj3BqSo9wakqPf3kASAK/eYB/Qyqqio+qqoqPqqqKj6qqio+/eQBIAr95gH9DAAAAD8AAAA/AAAAPwAAAD/95AEgCv3mASAK/eYBIAr9DAAAgD8AAIA/AACAPwAAgD/95AH95AEgC/34Af0MfwAAAH8AAAB/AAAAfwAAAP2uAUEX/asB/eYBIgogCf0MAAAAAAAAAAAAAAAAAAAAAP1E/VL95gH9DAAAgD8AAIA/AACAPwAAgD8gCv3kAf3nAf3kAf0LBAAgBkEQaiEGDAELCyAMQQFqIQwMAQsLIA1BAWohDQwBCwsLgQEBBX8gBkECdCELA0AgCCAKSwRAQQAhBgNAIAYgB0kEQCAAIAEgCmxqIAIgBmxqIQwgAyAEIApsaiAFIAZsaiENQQAhCQNAIAkgC0kEQCAJIAxqIAkgDWr9AAQA/QsEACAJQRBqIQkMAQsLIAZBAWohBgwBCwsgCkEBaiEKDAELCwuYBAIEewV/IAZBAnQhDwNAIAggDksEQEEAIQ0DQCAHIA1LBEAgACABIA5saiACIA1saiEQIAMgBCAObGogBSANbGohEUEAIQYDQCAGIA9JBEAgBiARav0ABAAiC/3hASEJIAsgCf3oAf0MAACuwgAArsIAAK7CAACuwv3pASIM/Qw7qrg/O6q4PzuquD87qrg//eYB/WohCiAGIBBqIAv9DGdpUDlnaVA5Z2lQOWdpUDkgDCAK/QwAgDE/AIAxPwCAMT8AgDE//eYB/eUBIAr9DIOAXrmDgF65g4BeuYOAXrn95gH95QEiDP3mAf0MzkO3Os5DtzrOQ7c6zkO3Ov3kASAM/eYB/QwIiQg8CIkIPAiJCDwIiQg8/eQBIAz95gH9DMGpKj3BqSo9wakqPcGpKj395AEgDP3mAf0MqqoqPqqqKj6qqio+qqoqPv3kASAM/eYB/QwAAAA/AAAAPwAAAD8AAAA//eQBIAz95gEgDP3mASAM/QwAAIA/AACAPwAAgD8AAIA//eQB/eQBIAr9+AH9DH8AAAB/AAAAfwAAAH8AAAD9rgFBF/2rAf3mAf0MAACAPwAAgD8AAIA/AACAP/3lASIKIAv9DAAAAAAAAAAAAAAAAAAAAAD9RCIL/VL9CwQAIA8gEGogBmogCiAJIAv9Uv0LBAAgBkEQaiEGDAELCyANQQFqIQ0MAQsLIA5BAWohDgwBCwsL', relaxed: 'AGFzbQEAAAABGwJgCX9/f39/f39/fwBgC39/f39/f39/f39/AAMFBAEAAAAFAwEAAQcnBQRnZW1tAAAEY2VsdQADBWdhdGVkAAEEY29weQACBm1lbW9yeQIACr0QBO4GAgt/C3sgB0EGdCESA0AgCCARSwRAQQAhEANAIAogEEsEQCAAIAEgEGxqIQ4gAyAEIBBsaiEPQQAhDQNAIA1BAmogCU0EQCAFIA9qIRMgDv0ABAAhFyAO/QAEECEYIA79AAQgIRYgDv0ABDAhGSACIA5qIhX9AAQAIRogFf0ABBAhGyAV/QAEICEcIBX9AAQwIR0gBiELQQAhDANAIAcgDEsEQCAL/QAEACIeIAxBAnQiFCAPav0JAgAiHyAX/YUCIRcgHiATIBRq/QkCACIeIBr9hQIhGiAL/QAEECIgIB8gGP2FAiEYICAgHiAb/YUCIRsgC/0ABCAiICAfIBb9hQIhFiAgIB4gHP2FAiEcIAv9AAQwIiAgHyAZ/YUCIRkgICAeIB39hQIhHSAMQQFqIQwgC0FAayELDAELCyAOIBf9CwQAIA4gGP0LBBAgDiAW/QsEICAOIBn9CwQwIBUgGv0LBAAgFSAb/QsEECAVIBz9CwQgIBUgHf0LBDAgDUECaiENIA4gAkEBdGohDiAPIAVBAXRqIQ8MAQsLIAkgDUcEQCAO/QAEACEZIA79AAQQIRYgDv0ABCAhFyAO/QAEMCEY/QwAAAAAAAAAAAAAAAAAAAAAIRr9DAAAAAAAAAAAAAAAAAAAAAAhG/0MAAAAAAAAAAAAAAAAAAAAACEc/QwAAAAAAAAAAAAAAAAAAAAAIR0gBiENQQAhCwNAIAtBAmoiDCAHTQRAIA39AAQAIA8gC0ECdGoiC/0JAgAiHiAZ/YUCIRkgDf0ABEAgC/0JAgQiHyAa/YUCIRogDf0ABBAgHiAW/YUCIRYgDf0ABFAgHyAb/YUCIRsgDf0ABCAgHiAX/YUCIRcgDf0ABGAgHyAc/YUCIRwgDf0ABDAgHiAY/YUCIRggDf0ABHAgHyAd/YUCIR0gDCELIA1BgAFqIQ0MAQsLIAcgC0sEQCAN/QAEACAPIAtBAnRq/QkCACIeIBn9hQIhGSAN/QAEICAeIBf9hQIhFyAN/QAEMCAeIBj9hQIhGCAN/QAEECAeIBb9hQIhFgsgDiAZIBr95AH9CwQAIA4gFiAb/eQB/QsEECAOIBcgHP3kAf0LBCAgDiAYIB395AH9CwQwCyAQQQFqIRAMAQsLIBFBEGohESAGIBJqIQYgAEFAayEADAELCwutBAIDewZ/IAZBAnQhDgNAIAggDUsEQEEAIQwDQCAHIAxLBEAgACABIA1saiACIAxsaiEQIAMgBCANbGogBSAMbGohD0EAIQYDQCAGIA5JBEAgDiAPaiAGav0ABAAiCSAJ/eEB/egB/QwAAK7CAACuwgAArsIAAK7C/ekBIgr9DDuquD87qrg/O6q4PzuquD/95gH9aiELIAYgEGoiESAR/QAEACAGIA9q/QAEAP0MAACAPwAAgD8AAIA/AACAP/0MZ2lQOWdpUDlnaVA5Z2lQOSAKIAv9DACAMT8AgDE/AIAxPwCAMT/95gH95QEgC/0Mg4BeuYOAXrmDgF65g4Beuf3mAf3lASIK/eYB/QzOQ7c6zkO3Os5DtzrOQ7c6/eQBIAr95gH9DAiJCDwIiQg8CIkIPAiJCDz95AEgCv3mAf0MwakqPcGpKj3BqSo9wakqPf3kASAK/eYB/Qyqqio+qqoqPqqqKj6qqio+/eQBIAr95gH9DAAAAD8AAAA/AAAAPwAAAD/95AEgCv3mASAK/eYBIAr9DAAAgD8AAIA/AACAPwAAgD/95AH95AEgC/34Af0MfwAAAH8AAAB/AAAAfwAAAP2uAUEX/asB/eYBIgogCf0MAAAAAAAAAAAAAAAAAAAAAP1E/VL95gH9DAAAgD8AAIA/AACAPwAAgD8gCv3kAf3nAf3kAf0LBAAgBkEQaiEGDAELCyAMQQFqIQwMAQsLIA1BAWohDQwBCwsLgQEBBX8gBkECdCELA0AgCCAKSwRAQQAhBgNAIAYgB0kEQCAAIAEgCmxqIAIgBmxqIQwgAyAEIApsaiAFIAZsaiENQQAhCQNAIAkgC0kEQCAJIAxqIAkgDWr9AAQA/QsEACAJQRBqIQkMAQsLIAZBAWohBgwBCwsgCkEBaiEKDAELCwuYBAIEewV/IAZBAnQhDwNAIAggDksEQEEAIQ0DQCAHIA1LBEAgACABIA5saiACIA1saiEQIAMgBCAObGogBSANbGohEUEAIQYDQCAGIA9JBEAgBiARav0ABAAiC/3hASEJIAsgCf3oAf0MAACuwgAArsIAAK7CAACuwv3pASIM/Qw7qrg/O6q4PzuquD87qrg//eYB/WohCiAGIBBqIAv9DGdpUDlnaVA5Z2lQOWdpUDkgDCAK/QwAgDE/AIAxPwCAMT8AgDE//eYB/eUBIAr9DIOAXrmDgF65g4BeuYOAXrn95gH95QEiDP3mAf0MzkO3Os5DtzrOQ7c6zkO3Ov3kASAM/eYB/QwIiQg8CIkIPAiJCDwIiQg8/eQBIAz95gH9DMGpKj3BqSo9wakqPcGpKj395AEgDP3mAf0MqqoqPqqqKj6qqio+qqoqPv3kASAM/eYB/QwAAAA/AAAAPwAAAD8AAAA//eQBIAz95gEgDP3mASAM/QwAAIA/AACAPwAAgD8AAIA//eQB/eQBIAr9+AH9DH8AAAB/AAAAfwAAAH8AAAD9rgFBF/2rAf3mAf0MAACAPwAAgD8AAIA/AACAP/3lASIKIAv9DAAAAAAAAAAAAAAAAAAAAAD9RCIL/VL9CwQAIA8gEGogBmogCiAJIAv9Uv0LBAAgBkEQaiEGDAELCyANQQFqIQ0MAQsLIA5BAWohDgwBCwsL'};

const core = () => {
  const align = c => Math.ceil(c/16)*16;

  // The four loops of kernel.ts in plain JavaScript, for browsers without SIMD; pointers are bytes there, too
  const plainKernel = heap => {
    const each = (out, ob, on, x, xb, xn, N, B, f) => {
      for (let b = 0; b < B; b++) for (let n = 0; n < N; n++) f((out + b*ob + n*on) >> 2, (x + b*xb + n*xn) >> 2);
    };
    return {
      gemm(out, ob, on, x, xb, xn, weight, K, M, N, B) {
        const F = heap.F;
        each(out, ob, on, x, xb, xn, N, B, (o, s) => {
          for (let m = 0; m < M; m += 4) {
            let w = (weight >> 2) + (m >> 4)*K*16 + (m & 15), a = F[o+m], b = F[o+m+1], c = F[o+m+2], d = F[o+m+3];
            for (let k = 0; k < K; k++, w += 16) {
              const v = F[s+k];
              a += F[w]*v; b += F[w+1]*v; c += F[w+2]*v; d += F[w+3]*v;
            }
            F[o+m] = a; F[o+m+1] = b; F[o+m+2] = c; F[o+m+3] = d;
          }
        });
      },
      celu(out, ob, on, x, xb, xn, C, N, B) {
        const F = heap.F;
        each(out, ob, on, x, xb, xn, N, B, (o, s) => {
          for (let c = 0; c < C; c++) {
            const v = F[s+c], e = Math.expm1(-Math.abs(v));
            F[o+c] = v > 0 ? v : e; F[o+C+c] = v > 0 ? e : -v;
          }
        });
      },
      gated(out, ob, on, h, hb, hn, C, N, B) {
        const F = heap.F;
        each(out, ob, on, h, hb, hn, N, B, (o, s) => {
          for (let c = 0; c < C; c++) F[o+c] += F[s+c]/(1 + Math.exp(-F[s+C+c]));
        });
      },
      copy(out, ob, on, x, xb, xn, C, N, B) {
        each(out, ob, on, x, xb, xn, N, B, (o, s) => heap.F.copyWithin(o, s, s + C));
      },
    };
  };

  // Memory for weights and activations: it grows, and what lies above a mark is given back at once
  const makeHeap = memory => {
    const heap = {top: 1024};
    const refresh = () => { heap.F = new Float32Array(memory ? memory.buffer : heap.buffer); };
    heap.buffer = memory ? null : new ArrayBuffer(1 << 20);
    heap.alloc = floats => {
      const p = heap.top, end = p + align(floats)*4, have = heap.F.byteLength;
      if (end > have) {
        const more = Math.ceil((end - have)/2**22)*2**22;
        if (memory) memory.grow(more/65536);
        else { const old = heap.F; heap.buffer = new ArrayBuffer(have + more); new Float32Array(heap.buffer).set(old); }
        refresh();
      }
      heap.top = end;
      heap.F.fill(0, p >> 2, end >> 2);
      return p;
    };
    heap.put = values => { const p = heap.alloc(values.length); heap.F.set(values, p >> 2); return p; };
    refresh();
    return heap;
  };

  const half = h => {
    const s = h & 0x8000 ? -1 : 1, e = h >> 10 & 31, m = h & 1023;
    return s*(e === 0 ? m*2**-24 : e === 31 ? (m ? NaN : Infinity) : (1 + m/1024)*2**(e - 15));
  };
  const fromHalves = (halves, all) => {
    const out = new Float32Array(halves.length);
    for (let i = 0; i < out.length; i++) out[i] = all[halves[i]];
    return out;
  };

  // A safetensors file: an object of {shape, data}; 8-bit tensors have a factor for each filter in `name:scale`
  const readTensors = bytes => {
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength), size = Number(view.getBigUint64(0, true));
    const header = JSON.parse(new TextDecoder().decode(bytes.subarray(8, 8 + size))), tensors = {};
    const {__metadata__: metadata = {}, ...entries} = header;
    const numbers = Float32Array.from({length: 65536}, (_, h) => half(h));
    if (!metadata.distsmooth) throw new Error('source must be weights that distsmooth exported for the page');
    for (const [name, {dtype, shape, data_offsets: [from, to]}] of Object.entries(entries)) {
      const raw = bytes.slice(8 + size + from, 8 + size + to).buffer;
      const read = {F32: () => new Float32Array(raw), I8: () => new Float32Array(new Int8Array(raw)),
                    F16: () => fromHalves(new Uint16Array(raw), numbers)}[dtype];
      if (!read) throw new Error(`weights must be F32, F16 or I8, got ${dtype}`);
      tensors[name] = {shape, data: read()};
    }
    for (const [name, {data: scale}] of Object.entries(tensors)) if (name.endsWith(':scale')) {
      const {data} = tensors[name.slice(0, -6)], each = data.length/scale.length;
      for (let i = 0; i < data.length; i++) data[i] *= scale[i/each | 0];
    }
    return {tensors, about: JSON.parse(metadata.distsmooth)};
  };

  // The weights of one network, packed for `gemm`; channels of a stream are padded to `C`, a multiple of 16
  const makeNetwork = (heap, config, tensors, prefix) => {
    const get = name => tensors[`${prefix}.${name}`];
    const nf = config.n_filters, C = align(nf), both = [0, 1];
    // [M/16][K][16] of weight (O, I, kh, kw): K runs over taps [kh, kw], groups of input channels, channels
    const pack = (t, taps, groups, {size = nf, padded = C, outs = nf, transposed = false} = {}) => {
      const [O, I] = transposed ? [t.shape[1], t.shape[0]] : t.shape, [, , kh = 1, kw = 1] = t.shape;
      const K = taps.length*groups.length*padded, M = Math.ceil(O/outs)*align(outs), p = heap.alloc(K*M), F = heap.F;
      for (let o = 0; o < O; o++) {
        const m = (o/outs | 0)*align(outs) + o % outs, row = (p >> 2) + (m >> 4)*K*16 + (m & 15);
        taps.forEach(([y, x], a) => groups.forEach((g, b) => {
          for (let i = 0; i < size; i++) {
            const c = g*size + i, at = ((transposed ? c*O + o : o*I + c)*kh + y)*kw + x;
            F[row + ((a*groups.length + b)*padded + i)*16] = t.data[at];
          }
        }));
      }
      return {p, K, M};
    };
    const vector = (name, outs = nf) => {  // a bias, padded like the outputs of `pack`
      const {data} = get(name), out = new Float32Array(Math.ceil(data.length/outs)*align(outs));
      data.forEach((v, o) => { out[(o/outs | 0)*align(outs) + o % outs] = v; });
      return out;
    };
    const add = (...vectors) => vectors.reduce((a, b) => a.map((v, i) => v + b[i]));
    const width = t => t.shape[3], line = (kh, kw) => [...Array(kw).keys()].map(x => [kh, x]);
    const two = (name, groups, how) => {  // a kernel of height 2: the row above, and its own; a 'right' one of width 2
      const t = get(`${name}.weight`);
      return {above: pack(t, line(0, width(t)), groups, how), own: pack(t, line(1, width(t)), groups, how)};
    };
    const block = (name, horizontal, shortcut) => {
      const skip = get(`${name}.skip.weight`), context = get(`${name}.context.weight`);
      const cond = get(`${name}.cond.weight`), streams = skip ? skip.shape[1]/nf/2 : 0, at = [[0, 0]];
      const biases = ['conv_in.conv', 'skip', 'context'].filter(part => get(`${name}.${part}.bias`));
      return {
        first: two(`${name}.conv_in.conv`, both), second: two(`${name}.conv_out.conv`, both),
        bias: heap.put(add(...biases.map(part => vector(`${name}.${part}.bias`)))),
        base: vector(`${name}.conv_out.conv.bias`), bias2: heap.alloc(2*C),
        cond: cond && {weight: cond.data, bias: vector(`${name}.cond.bias`)},
        skip: skip && pack(skip, at, [0, streams]),
        shortcut: shortcut && horizontal ? pack(skip, at, [1, streams + 1]) : null,
        context: context && pack(context, at, both),
      };
    };
    const streams = (name, down) => {
      const pairs = [];
      for (let k = 0; get(`${name}.vertical.${k}.conv_in.conv.weight`); k++)
        pairs.push({v: block(`${name}.vertical.${k}`, false, down), h: block(`${name}.horizontal.${k}`, true, down)});
      return pairs;
    };
    const plainBlock = name => ({  // of the context encoder: 3x3, free to look everywhere
      first: three(`${name}.conv_in`, both), second: three(`${name}.conv_out`, both),
      skip: get(`${name}.skip.weight`) && pack(get(`${name}.skip.weight`), [[0, 0]], both),
      bias: heap.put(get(`${name}.skip.bias`) ? add(vector(`${name}.conv_in.bias`), vector(`${name}.skip.bias`))
                                              : vector(`${name}.conv_in.bias`)),
      bias2: heap.put(vector(`${name}.conv_out.bias`)),
    });
    const three = (name, groups, how) => [0, 1, 2].map(y => pack(get(`${name}.weight`), line(y, 3), groups, how));
    const with3 = (name, groups, how) => ({rows: three(name, groups, how), bias: heap.put(vector(`${name}.bias`))});
    const few = n => ({size: n, padded: n});

    const colours = few(config.channels + 1), entry = k => get(`init.${k}.conv.weight`);
    const levels = [0, 1, 2].map(d => {
      const level = {up: streams(`up.${d}`, false), down: streams(`down.${2-d}`, true)};
      if (d === 2) return level;
      const v = `grow.${1-d}.vertical.conv`, h = `grow.${1-d}.horizontal.conv`, how = {transposed: true};
      const tv = get(`${v}.weight`), th = get(`${h}.weight`), bias = vector(`${h}.bias`);
      const corners = [[0, 0], [0, 1], [1, 0], [1, 1]].map(tap => pack(th, [tap], [0], how));
      return {...level,
        shrinkV: {...two(`shrink.${d}.vertical.conv`, [0]), bias: heap.put(vector(`shrink.${d}.vertical.conv.bias`))},
        shrinkH: {...two(`shrink.${d}.horizontal.conv`, [0]), bias: heap.put(vector(`shrink.${d}.horizontal.conv.bias`))},
        growV: [0, 1].map(a => ({even: pack(tv, [[a, 1]], [0], how), odd: pack(tv, [[a, 2], [a, 0]], [0], how)})),
        growVBias: heap.put(vector(`${v}.bias`)),
        growH: {p: corners[0].p, K: C, M: 4*C}, growHBias: heap.put([bias, bias, bias, bias].flatMap(b => [...b])),
      };
    });
    const net = {
      config, C, levels,
      entry: {
        rows: [0, 1].map(y => pack(entry(0), line(y, 3), [0], colours)), bias0: heap.put(vector('init.0.conv.bias')),
        above: pack(entry(1), line(0, 3), [0], colours), bias1: heap.put(vector('init.1.conv.bias')),
        left: [0, 1].map(y => pack(entry(2), [[y, 0]], [0], colours)), bias2: heap.put(vector('init.2.conv.bias')),
      },
      out: {...pack(get('out.weight'), [[0, 0]], [0], {outs: get('out.weight').shape[0]}),
            bias: heap.put(vector('out.bias', get('out.weight').shape[0]))},
    };
    if (config.context_channels) net.encoder = {
      init: with3('encoder.init', [0], few(config.context_channels)),
      shrink: [0, 1].map(k => with3(`encoder.shrink.${k}`, [0])),
      up: [0, 1, 2].map(k => plainBlock(`encoder.up.${k}`)), down: [0, 1].map(k => plainBlock(`encoder.down.${k}`)),
    };
    const blocks = levels.flatMap(l => [...l.up, ...l.down].flatMap(pair => [pair.v, pair.h]));
    const linear = (k, x) => {
      const {data: w} = get(`sigma_embedding.layers.${k}.weight`), {data: b} = get(`sigma_embedding.layers.${k}.bias`);
      return Array.from(b, (v, o) => x.reduce((sum, xi, i) => sum + w[o*x.length + i]*xi, v));
    };
    net.setConditions = (sigma, label) => {  // what a noise level and a class add to each block's second bias
      let code = null;
      if (config.n_classes) code = Array.from(get('label.weight').data.subarray(label*nf, (label + 1)*nf));
      if (config.sigma_range) {
        const [low, high] = config.sigma_range, place = Math.log(sigma/low)/Math.log(high/low);
        const [, n] = get('sigma_embedding.layers.0.weight').shape;
        const cosines = Array.from({length: n}, (_, k) => Math.cos(Math.PI*place*(k + 1)));
        code = linear(2, linear(0, cosines).map(v => v > 0 ? v : Math.expm1(v))).map((v, i) => v + (code?.[i] ?? 0));
      }
      for (const b of blocks) {
        const sum = Float32Array.from(b.base);
        if (code && b.cond) b.cond.bias.forEach((v, m) => { sum[m] += v; });
        if (code && b.cond) for (let o = 0; o < 2*nf; o++)
          sum[(o/nf | 0)*C + o % nf] += code.reduce((s, v, i) => s + b.cond.weight[o*nf + i]*v, 0);
        heap.F.set(sum, b.bias2 >> 2);
      }
    };
    return net;
  };

  // Where rows lie: strides in bytes, `n` from column to column, `b` from image to image
  const makeLine = (heap, n, W, C, right = 0) => ({p: heap.alloc(n*(W + right)*C), n: C*4, b: (W + right)*C*4});
  // This row and the one before it, with columns of zeros at the borders: what a kernel of height 2 sees
  const makeRing = (heap, n, W, C, left, right) => {
    const s = {n: C*4, b: (left + W + right)*C*4, p: heap.alloc(2*n*(left + W + right)*C)};
    s.window = (i, j = 0) => s.p + (i & 1)*n*s.b + j*s.n;
    s.at = (i, j = 0) => s.window(i, j + left);
    return s;
  };

  // The U-net of the context: features [n][H][W][2*C] at each resolution; one image after the other
  const encode = (heap, k, net, context, n) => {
    const {config: {size: [H, W], context_channels: channels}, C, encoder: e} = net;
    const features = [0, 1, 2].map(d => ({p: heap.alloc(n*(H >> d)*(W >> d)*2*C), n: 8*C, row: (W >> d)*8*C, b: (H >> d)*(W >> d)*8*C}));
    const mark = heap.top, plane = (d, c) => {
      const w = (W >> d) + 2, s = {p: heap.alloc((w + 2)*((H >> d) + 2)*c + 64), n: 4*c, row: 4*c*w};
      return {...s, inner: s.p + s.row + s.n};
    };
    const image = plane(0, channels), steps = [0, 1].map(d => plane(d, C)), pads = [0, 1, 2].map(d => plane(d, 2*C));
    const levels = [0, 1, 2].map(d => ({p: heap.alloc((H >> d)*(W >> d)*C), n: 4*C, row: (W >> d)*4*C}));
    const hidden = {p: heap.alloc(H*W*C), n: 4*C}, gates = {p: heap.alloc(H*W*2*C), n: 8*C};
    const conv = (d, out, M, bias, x, rows, stride = 1) => {
      const w = W >> d, h = H >> d;
      k.copy(out.p, w*4*M, 4*M, bias, 0, 0, M, w, h);
      rows.forEach((r, y) => k.gemm(out.p, w*4*M, 4*M, x.p + y*x.row, stride*x.row, stride*x.n, r.p, r.K, M, w, h));
    };
    const block = (d, b, skip) => {
      const w = W >> d, h = H >> d, x = levels[d], pad = pads[d], f = {p: features[d].p, n: 8*C, row: features[d].row};
      k.celu(pad.inner, pad.row, pad.n, x.p, x.row, x.n, C, w, h);
      conv(d, hidden, C, b.bias, pad, b.first);
      if (skip) k.gemm(hidden.p, w*4*C, 4*C, f.p, f.row, f.n, b.skip.p, 2*C, C, w, h);  // f holds celu of the shortcut
      k.celu(pad.inner, pad.row, pad.n, hidden.p, w*4*C, 4*C, C, w, h);
      conv(d, gates, 2*C, b.bias2, pad, b.second);
      k.gated(x.p, x.row, x.n, gates.p, w*8*C, 8*C, C, w, h);
    };
    const base = features.map(f => f.p);
    for (let b = 0; b < n; b++) {
      features.forEach((f, d) => { f.p = base[d] + b*f.b; });
      for (let c = 0; c < channels; c++) for (let i = 0; i < H; i++) for (let j = 0; j < W; j++)
        heap.F[(image.inner + i*image.row + j*image.n >> 2) + c] = context[((b*channels + c)*H + i)*W + j];
      const finish = d => k.celu(features[d].p, features[d].row, 8*C, levels[d].p, levels[d].row, 4*C, C, W >> d, H >> d);
      conv(0, levels[0], C, e.init.bias, image, e.init.rows);
      block(0, e.up[0]);
      for (const d of [1, 2]) {
        const from = steps[d-1];
        k.copy(from.inner, from.row, from.n, levels[d-1].p, levels[d-1].row, 4*C, C, W >> d-1, H >> d-1);
        conv(d, levels[d], C, e.shrink[d-1].bias, from, e.shrink[d-1].rows, 2);
        block(d, e.up[d]);
      }
      finish(2);
      for (const d of [1, 0]) {
        finish(d);
        const x = levels[d+1], y = levels[d];
        for (const a of [0, 1]) for (const c of [0, 1])  // each coarse pixel becomes four
          k.copy(y.p + a*y.row + c*y.n, 2*y.row, 2*y.n, x.p, x.row, x.n, C, W >> d+1, H >> d+1);
        block(d, e.down[d], true);
        finish(d);
      }
    }
    features.forEach((f, d) => { f.p = base[d]; });
    heap.top = mark;
    return features;
  };

  // One network while it draws n images: every layer computes what is new and keeps the rest
  const makeDecoder = (heap, k, net, n, features) => {
    const {config: {channels, size: [H, W]}, C, levels} = net, colours = channels + 1, P = net.out.M;
    const canvas = {n: colours*4, row: (W + 2)*colours*4, b: (H + 2)*(W + 2)*colours*4};
    canvas.p = heap.alloc(n*(H + 2)*(W + 2)*colours + 64);
    const cell = (b, i, j) => canvas.p + b*canvas.b + (i + 2)*canvas.row + (j + 1)*canvas.n >> 2;
    for (let b = 0; b < n; b++) for (let i = 0; i < H; i++) for (let j = 0; j < W; j++) heap.F[cell(b, i, j) + channels] = 1;

    const row = (out, x, m, M, w) => k.gemm(out.p, out.b, out.n, x.p, x.b, x.n, m.p, m.K, M, w, n);
    const from = (ring, i, stride = 1) => ({p: ring.window(i), b: ring.b, n: stride*ring.n});
    const own = (ring, i) => ({p: ring.at(i), b: ring.b, n: ring.n});
    const fill = (out, bias, M, w) => k.copy(out.p, out.b, out.n, bias, 0, 0, M, w, n);
    const at = (line, j) => ({p: line.p + j*line.n, b: line.b});  // column j of all images: images are columns then
    const pixel = (out, x, m, M) => k.gemm(out.p, 0, out.b, x.p, 0, x.b, m.p, m.K, M, n, 1);

    const makeLevel = d => {
      const w = W >> d, net = levels[d], last = d === 2, ups = net.up.length, downs = net.down.length;
      const stage = (count, reuse) => Array.from({length: count + 1}, (_, i) => i === 0 && reuse ? reuse
        : {v: makeRing(heap, n, w, 2*C, 1, 1), h: makeRing(heap, n, w, 2*C, 1, 0)});
      const up = stage(ups), down = stage(downs, last ? up[ups] : null);  // celu of both streams before each block
      const mids = count => Array.from({length: count}, () => ({
        v: makeRing(heap, n, w, 2*C, 1, 1), h: makeRing(heap, n, w, 2*C, 1, 0),
        sums: makeLine(heap, n, w, C), gates: makeLine(heap, n, w, 2*C)}));
      const upMids = mids(ups), downMids = mids(downs), sums = makeLine(heap, n, w, C), gates = makeLine(heap, n, w, 2*C);
      const V = makeLine(heap, n, w, C, 1), h = makeLine(heap, n, 1, C), inner = last ? null : makeLevel(d + 1);
      const context = i => features && {p: features[d].p + i*features[d].row, b: features[d].b, n: features[d].n};
      const keep = (i, ring) => k.celu(ring.at(i), ring.b, ring.n, V.p, V.b, V.n, C, w, n);

      const vertical = (i, b, ring, mid, skip) => {
        fill(sums, b.bias, C, w);
        row(sums, from(ring, i - 1), b.first.above, C, w);
        row(sums, from(ring, i), b.first.own, C, w);
        if (skip) row(sums, own(skip, i), b.skip, C, w);
        if (b.context) row(sums, context(i), b.context, C, w);
        k.celu(mid.at(i), mid.b, mid.n, sums.p, sums.b, sums.n, C, w, n);
        fill(gates, b.bias2, 2*C, w);
        row(gates, from(mid, i - 1), b.second.above, 2*C, w);
        row(gates, from(mid, i), b.second.own, 2*C, w);
        k.gated(V.p, V.b, V.n, gates.p, gates.b, gates.n, C, w, n);
      };
      const horizontal = (i, b, ring, mid, above) => {  // all that is known of a row before its first pixel
        fill(mid.sums, b.bias, C, w);
        row(mid.sums, from(ring, i - 1), b.first.above, C, w);
        row(mid.sums, own(above, i), b.skip, C, w);
        if (b.context) row(mid.sums, context(i), b.context, C, w);
        fill(mid.gates, b.bias2, 2*C, w);
        row(mid.gates, from(mid.h, i - 1), b.second.above, 2*C, w);
      };
      const finish = (i, j, b, ring, mid, shortcut) => {  // the pixel's own row, as far as it is drawn
        const s = at(mid.sums, j), g = at(mid.gates, j);
        k.celu(ring.at(i, j), 0, ring.b, h.p, 0, h.b, C, n, 1);
        pixel(s, {p: ring.window(i, j), b: ring.b}, b.first.own, C);
        if (shortcut) pixel(s, {p: shortcut.at(i, j), b: shortcut.b}, b.shortcut, C);
        k.celu(mid.h.at(i, j), 0, mid.h.b, s.p, 0, s.b, C, n, 1);
        pixel(g, {p: mid.h.window(i, j), b: mid.h.b}, b.second.own, 2*C);
        k.gated(h.p, 0, h.b, g.p, 0, g.b, C, n, 1);
      };

      const level = {V, h};
      let coarseRow = () => {}, coarsePixel = () => {};
      if (inner) {
        const kept = {v: makeRing(heap, n, w, C, 1, 1), h: makeRing(heap, n, w, C, 1, 0)}, half = w >> 1;
        const shrunk = makeLine(heap, n, half, C), rows = [0, 1].map(() => makeLine(heap, n, w, C)), fours = makeLine(heap, n, half, 4*C);
        coarseRow = i => {
          k.copy(kept.v.at(i), kept.v.b, kept.v.n, V.p, V.b, V.n, C, w, n);
          if (i % 2 === 0) {
            fill(inner.V, net.shrinkV.bias, C, half);
            row(inner.V, from(kept.v, i - 1, 2), net.shrinkV.above, C, half);
            row(inner.V, from(kept.v, i, 2), net.shrinkV.own, C, half);
            fill(shrunk, net.shrinkH.bias, C, half);
            row(shrunk, from(kept.h, i - 1, 2), net.shrinkH.above, C, half);
            inner.row(i >> 1);
            net.growV.forEach(({even, odd}, a) => {
              fill(rows[a], net.growVBias, C, w);
              for (const [m, first] of [[even, 0], [odd, 1]])
                row({p: rows[a].p + first*rows[a].n, b: rows[a].b, n: 2*rows[a].n}, inner.V, m, C, half);
            });
          }
          const two = rows[i & 1];
          k.copy(V.p, V.b, V.n, two.p, two.b, two.n, C, w, n);
        };
        coarsePixel = (i, j) => {
          const four = at(fours, j >> 1), s = at(shrunk, j >> 1);
          k.copy(kept.h.at(i, j), 0, kept.h.b, h.p, 0, h.b, C, n, 1);
          if (i % 2 === 0 && j % 2 === 0) {
            pixel(s, {p: kept.h.window(i, j), b: kept.h.b}, net.shrinkH.own, C);
            k.copy(inner.h.p, 0, inner.h.b, s.p, 0, s.b, C, n, 1);
            inner.pixel(i >> 1, j >> 1);
            k.copy(four.p, 0, four.b, net.growHBias, 0, 0, 4*C, n, 1);
            pixel(four, inner.h, net.growH, 4*C);
          }
          k.copy(h.p, 0, h.b, four.p + ((i & 1)*2 + (j & 1))*4*C, 0, four.b, C, n, 1);
        };
      }
      level.row = i => {
        keep(i, up[0].v);
        net.up.forEach((pair, q) => {
          vertical(i, pair.v, up[q].v, upMids[q].v);
          keep(i, up[q+1].v);
          horizontal(i, pair.h, up[q].h, upMids[q], up[q+1].v);
        });
        coarseRow(i);
        if (inner) keep(i, down[0].v);
        net.down.forEach((pair, q) => {
          vertical(i, pair.v, down[q].v, downMids[q].v, up[downs - 1 - q].v);
          keep(i, down[q+1].v);
          horizontal(i, pair.h, down[q].h, downMids[q], down[q+1].v);
        });
      };
      level.pixel = (i, j) => {
        net.up.forEach((pair, q) => finish(i, j, pair.h, up[q].h, upMids[q]));
        if (inner) k.celu(up[ups].h.at(i, j), 0, up[ups].h.b, h.p, 0, h.b, C, n, 1);
        coarsePixel(i, j);
        net.down.forEach((pair, q) => finish(i, j, pair.h, down[q].h, downMids[q], up[downs - 1 - q].h));
      };
      return level;
    };

    const top = makeLevel(0), sums = makeLine(heap, n, W, C), last = makeLine(heap, n, 1, 2*C);
    const params = {p: heap.alloc(n*H*W*P), n: P*4, row: W*P*4, b: H*W*P*4}, e = net.entry;
    const strip = (i, j) => ({p: canvas.p + (i + 2)*canvas.row + (j + 1)*canvas.n, b: canvas.b, n: canvas.n});
    return {
      row(i) {  // begin a row; all rows above it are on the canvas
        k.copy(top.V.p, top.V.b, top.V.n, i ? e.bias0 : zero(heap, C), 0, 0, C, W, n);
        if (i) e.rows.forEach((m, y) => row(top.V, strip(i - 2 + y, -1), m, C, W));
        fill(sums, e.bias2, C, W);
        k.copy(sums.p, sums.b, sums.n, zero(heap, C), 0, 0, C, 1, n);  // nothing to the left: no bias either
        row({...sums, p: sums.p + sums.n}, strip(i - 1, 0), e.left[0], C, W - 1);
        if (i) {
          addBias(heap, sums, e.bias1, C, W, n);
          row(sums, strip(i - 1, -1), e.above, C, W);
        }
        top.row(i);
      },
      pixel(i, j) {  // params of pixel (i, j) of all images, at `params`
        const s = at(sums, j), p = params.p + i*params.row + j*params.n;
        if (j) pixel(s, strip(i, j - 1), e.left[1], C);
        k.copy(top.h.p, 0, top.h.b, s.p, 0, s.b, C, n, 1);
        top.pixel(i, j);
        k.celu(last.p, 0, last.b, top.h.p, 0, top.h.b, C, n, 1);
        k.copy(p, 0, params.b, net.out.bias, 0, 0, P, n, 1);
        k.gemm(p, 0, params.b, last.p, 0, last.b, net.out.p, C, P, n, 1);
      },
      cell, params,
    };
  };
  const zero = (heap, C) => heap.zero ??= heap.put(new Float32Array(4096));
  const addBias = (heap, out, bias, C, w, n) => {
    for (let b = 0; b < n; b++) for (let j = 0; j < w; j++) {
      const o = out.p + b*out.b + j*out.n >> 2;
      for (let c = 0; c < C; c++) heap.F[o + c] += heap.F[(bias >> 2) + c];
    }
  };

  // The mixture of logistics of one pixel, as distsmooth.logistic has it
  const logSigmoid = z => z > 0 ? -Math.log1p(Math.exp(-z)) : z - Math.log1p(Math.exp(z));
  const sigmoid = z => 1/(1 + Math.exp(-z)), clamp = (v, low, high) => Math.min(Math.max(v, low), high);
  const quantize = v => {  // to the nearest of 256 levels, halves to even
    const t = (clamp(v, -1, 1) + 1)*127.5, r = Math.round(t);
    return (r - t === .5 && r % 2 ? r - 1 : r)/127.5 - 1;
  };
  const softmax = logits => {
    const top = Math.max(...logits), e = logits.map(v => Math.exp(v - top)), sum = e.reduce((a, b) => a + b, 0);
    return e.map(v => v/sum);
  };
  const makeMixture = (config, F, p, temperature) => {
    const K = config.n_mix, C = config.channels, per = C === 1 ? 2 : 3, o = p >> 2, read = at => Array.from(F.subarray(o + at, o + at + K));
    const channel = c => K + c*per*K;
    return {
      discretized: config.head === 'discretized', logits: read(0).map(v => v/temperature),
      means: Array.from({length: C}, (_, c) => read(channel(c))),
      logScales: Array.from({length: C}, (_, c) => read(channel(c) + K).map(v => Math.max(v, -7) + Math.log(temperature))),
      coeffs: C === 1 ? [] : Array.from({length: C}, (_, c) => read(channel(c) + 2*K).map(Math.tanh)),
    };
  };
  const locations = (m, c, values) => m.means[c].map((v, k) =>
    [[], [0], [1, 2]][c].reduce((sum, q, i) => sum + m.coeffs[q][k]*values[i], v));
  const logProb = (m, x, loc, logScale) => {
    const inv = Math.exp(-logScale), z = (x - loc)*inv, half = inv/255;
    if (!m.discretized) return logSigmoid(z) + logSigmoid(-z) - logScale;
    if (x < -1 + 1/255) return logSigmoid(z + half);
    if (x > 1 - 1/255) return logSigmoid(half - z);
    return logSigmoid(z + half) + logSigmoid(half - z) + Math.log(-Math.expm1(-2*half));
  };
  const quantile = (u, weights, loc, scales) => {  // bisection between the components' own quantiles, by the smaller tail
    const upper = u > .5, side = Math.min(u, 1 - u), at = Math.log(u/(1 - u)), flip = upper ? -1 : 1;
    const ends = loc.map((l, k) => l + scales[k]*at);
    let lo = Math.min(...ends), hi = Math.max(...ends);
    for (let step = 0; step < 40 && hi - lo > 1e-7*(1 + Math.abs(lo)); step++) {
      const mid = (lo + hi)/2;
      const tail = weights.reduce((sum, w, k) => sum + w*sigmoid(flip*(mid - loc[k])/scales[k]), 0);
      if (flip*(tail - side) < 0) lo = mid; else hi = mid;
    }
    return (lo + hi)/2;
  };
  const EPS = 2**-23;
  const transforms = {
    choice(m, u) {
      const weights = softmax(m.logits), values = [];
      let pick = 0, sum = weights[0];
      while (u[0] > sum && pick < weights.length - 1) sum += weights[++pick];
      m.means.forEach((_, c) => {
        const v = clamp(u[c+1], EPS, 1 - EPS), x = locations(m, c, values)[pick] + Math.exp(m.logScales[c][pick])*Math.log(v/(1 - v));
        values.push(m.discretized ? quantize(x) : x);
      });
      return values;
    },
    icdf(m, u) {
      const values = [];
      let logits = m.logits;
      m.means.forEach((_, c) => {
        const loc = locations(m, c, values), v = clamp(u[c+1], 1e-38, 1 - EPS/2);
        const x = quantile(v, softmax(logits), loc, m.logScales[c].map(Math.exp));
        values.push(m.discretized ? quantize(x) : x);
        logits = logits.map((l, k) => l + logProb(m, values[c], loc[k], m.logScales[c][k]));
      });
      return values;
    },
  };

  const oneOf = (value, name, choices) => {
    if (!choices.includes(value)) throw new RangeError(`${name} must be one of ${choices.map(String).join(', ')}, got ${value}`);
    return value;
  };
  const fits = (values, name, ...lengths) => {
    if (!lengths.includes(values?.length)) throw new RangeError(`${name} must hold ${lengths.join(' or ')} numbers, got ${values?.length}`);
    return values;
  };

  // Everything of one weights file: networks in one heap, and the drawing of rows
  const makeEngine = async ({weights, kernels, plain}) => {
    const {tensors, about} = readTensors(weights);
    let memory = null, k = null, kind = 'plain';
    for (const name of plain ? [] : ['relaxed', 'simd']) try {
      const {instance} = await WebAssembly.instantiate(kernels[name]);
      [k, memory, kind] = [instance.exports, instance.exports.memory, name];
      break;
    } catch (e) { /* this browser does not know these instructions: the next kernel asks for less */ }
    const heap = makeHeap(memory);
    k ??= plainKernel(heap);
    zero(heap);
    const nets = Object.fromEntries(Object.entries(about.parts).map(([part, config]) => [part, makeNetwork(heap, config, tensors, part)]));
    const mark = heap.top, {channels, size: [H, W]} = Object.values(about.parts)[0], dims = channels*H*W;
    let drawn = {};

    const check = ({sigma, label, uniforms, denoise, transform, temperature, part}) => {
      oneOf(denoise, 'denoise', ['two_step', null]), oneOf(transform, 'transform', Object.keys(transforms));
      if (!(temperature > 0 && temperature < Infinity)) throw new RangeError(`temperature must be in (0, inf), got ${temperature}`);
      const parts = denoise ? ['smooth', 'reverse'] : [oneOf(part, 'part', Object.keys(nets).filter(p => p !== 'reverse'))];
      for (const p of parts) if (!nets[p]) throw new RangeError(`denoise must be null: these weights have no part ${p}`);
      const [low, high] = nets[parts[0]].config.sigma_range ?? [about.sigma, about.sigma];
      if (part !== 'raw' && !(sigma >= low && sigma <= high)) throw new RangeError(`sigma must be in [${low}, ${high}], got ${sigma}`);
      const classes = nets[parts[0]].config.n_classes;
      if (classes && !(Number.isInteger(label) && label >= 0 && label < classes)) throw new RangeError(`label must be a whole number in [0, ${classes - 1}], got ${label}`);
      const n = uniforms?.[0]?.length/((channels + 1)*H*W);
      if (!Number.isInteger(n) || n < 1) throw new RangeError(`uniforms must be [smooth, reverse], each n*${(channels + 1)*H*W} numbers, got ${uniforms?.[0]?.length}`);
      if (denoise) fits(uniforms[1], 'uniforms[1]', uniforms[0].length);
      return [parts, n];
    };

    function* draw(options) {  // yields {part, row, values}: each row (n, C, W) as soon as it is there
      const chosen = Object.entries(options).filter(([, v]) => v !== undefined);
      options = {denoise: 'two_step', transform: 'choice', temperature: 1, part: 'smooth', sigma: about.sigma, label: 0, ...Object.fromEntries(chosen)};
      const [parts, n] = check(options), {sigma, label, uniforms, transform, temperature, mask} = options;
      const known = options.known && (Array.isArray(options.known) && options.known[0]?.length ? options.known : [options.known, options.known]);
      if (!known !== !mask) throw new RangeError(`known and mask go together: ${known ? 'mask' : 'known'} is missing`);
      if (mask) fits(mask, 'mask', H*W, n*H*W);
      heap.top = mark;
      drawn = {};
      let x = null;
      for (const [q, part] of parts.entries()) {
        const net = nets[part], u = uniforms[q], given = known && fits(known[q], 'known', dims, n*dims);
        net.setConditions(sigma, label);
        const decoder = makeDecoder(heap, k, net, n, net.encoder ? encode(heap, k, net, x, n) : null);
        x = new Float32Array(n*dims);
        drawn[part] = {net, decoder, x, u, temperature, rows: 0};
        const isKnown = mask ? (b, at) => mask[(mask.length > H*W ? b*H*W : 0) + at] : () => false;
        for (let i = 0; i < H; i++) {
          decoder.row(i);
          for (let j = 0; j < W; j++) {
            decoder.pixel(i, j);
            for (let b = 0; b < n; b++) {
              const at = i*W + j, base = b*dims + at;
              const value = isKnown(b, at) ? Array.from({length: channels}, (_, c) => given[(given.length > dims ? b*dims : 0) + c*H*W + at])
                : transforms[transform](makeMixture(net.config, heap.F, decoder.params.p + b*decoder.params.b + i*decoder.params.row + j*decoder.params.n, temperature),
                                        Array.from({length: channels + 1}, (_, c) => u[(b*(channels + 1) + c)*H*W + at]));
              const cell = decoder.cell(b, i, j);
              value.forEach((v, c) => { x[base + c*H*W] = v; heap.F[cell + c] = v; });
            }
          }
          drawn[part].rows = i + 1;
          const values = new Float32Array(n*channels*W);
          for (let q = 0; q < n*channels; q++) values.set(x.subarray(q*H*W + i*W, q*H*W + (i + 1)*W), q*W);
          yield {part, row: i, values};
        }
      }
      return x;
    }

    const mixture = ({part, image, row, column}) => {  // of a pixel of the last drawing; null if it is not drawn yet
      const d = drawn[part];
      if (!d || row >= d.rows || image*dims >= d.x.length) return null;
      const {params: p} = d.decoder, at = row*W + column;
      const m = makeMixture(d.net.config, heap.F, p.p + image*p.b + row*p.row + column*p.n, d.temperature);
      const values = Array.from({length: channels}, (_, c) => d.x[image*dims + c*H*W + at]);
      return {discretized: m.discretized, weights: softmax(m.logits), means: locations(m, 0, values), scales: m.logScales[0].map(Math.exp), values,
              uniforms: Array.from({length: channels + 1}, (_, c) => d.u[(image*(channels + 1) + c)*H*W + at])};
    };
    return {draw, mixture, about: {...about, kernel: kind, shape: [channels, H, W]}};
  };

  // Answers messages {id, kind, ...} on a port: 'load', 'draw', 'cancel', 'mixture'
  const serve = port => {
    let engine, current = null;
    const work = {
      async load(message) { engine = await makeEngine(message); return engine.about; },
      async draw({id, options}) {
        current = id;
        const rows = engine.draw(options), {port1, port2} = new MessageChannel();
        const tick = () => new Promise(done => { port1.onmessage = done; port2.postMessage(0); });
        for (let item = rows.next(); ; item = rows.next()) {
          if (item.done) return item.value;
          port.postMessage({id, item: item.value});
          await tick();  // let a newer wish be heard
          if (current !== id) throw Object.assign(new Error('another drawing has begun, or this one was cancelled'), {name: 'AbortError'});
        }
      },
      async cancel() { current = null; },
      async mixture({where}) { return engine.mixture(where); },
    };
    port.onmessage = ({data}) => work[data.kind](data).then(
      value => port.postMessage({id: data.id, value}),
      error => port.postMessage({id: data.id, error: error.message, name: error.name}));
  };
  return {serve};
};

export function fromBase64(text) {
  const letters = atob(text), bytes = new Uint8Array(letters.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = letters.charCodeAt(i);
  return bytes;
}

// What `pack_weights` of distsmooth.engine.page did, undone: gzip, and the bytes sorted into two halves
async function unpack(bytes) {
  if (bytes[0] !== 0x1f || bytes[1] !== 0x8b) return bytes;
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream('gzip'));
  const sorted = new Uint8Array(await new Response(stream).arrayBuffer()), half = sorted.length/2, out = new Uint8Array(sorted.length);
  for (let i = 0; i < half; i++) { out[2*i] = sorted[i]; out[2*i + 1] = sorted[half + i]; }
  return out;
}

async function bytesOf(source) {
  if (source instanceof ArrayBuffer) return new Uint8Array(source);
  if (ArrayBuffer.isView(source)) return new Uint8Array(source.buffer, source.byteOffset, source.byteLength);
  const answer = await fetch(source);
  if (!answer.ok) throw new Error(`source must be weights or their address, got ${source}: ${answer.status}`);
  return new Uint8Array(await answer.arrayBuffer());
}

function openPort(worker) {
  try {
    if (!worker) throw null;
    const url = URL.createObjectURL(new Blob([`(${core})().serve(self)`], {type: 'text/javascript'}));
    return new Worker(url);
  } catch (e) {  // no worker here: on the page's own thread, row by row
    const {port1, port2} = new MessageChannel();
    core().serve(port1);
    return port2;
  }
}

// The numbers of `torch.rand(n, generator=torch.Generator().manual_seed(seed))`: the Mersenne twister, 24 bits of each draw
export function torchRand(seed) {
  const s = new Uint32Array(624);
  s[0] = seed >>> 0;
  for (let i = 1; i < 624; i++) s[i] = Math.imul(1812433253, s[i-1] ^ s[i-1] >>> 30) + i;
  let at = 624;
  const next = () => {
    if (at === 624) {
      for (let i = 0; i < 624; i++) {
        const y = s[i] & 0x80000000 | s[(i + 1) % 624] & 0x7fffffff;
        s[i] = s[(i + 397) % 624] ^ y >>> 1 ^ (y & 1 ? 0x9908b0df : 0);
      }
      at = 0;
    }
    let y = s[at++];
    y ^= y >>> 11; y ^= y << 7 & 0x9d2c5680; y ^= y << 15 & 0xefc60000; y ^= y >>> 18;
    return (y & 0xffffff)/2**24;
  };
  return n => Float32Array.from({length: n}, next);
}

// A sampler over a port that answers messages {id, kind, ...}: a worker, or a Python kernel; `about`, if it is known already
export async function connect(port, message, about) {
  const waiting = new Map();
  let last = 0;
  port.onmessage = ({data: {id, item, value, error, name}}) => {
    const {done, fail, onRow} = waiting.get(id) ?? {};
    if (item) return onRow?.(item.row, item.values, item.part);
    waiting.delete(id);
    if (error === undefined) done?.(value);
    else fail?.(name === 'AbortError' ? new DOMException(error, name) : new (name === 'RangeError' ? RangeError : Error)(error));
  };
  const ask = (kind, message, onRow) => new Promise((done, fail) => {
    waiting.set(++last, {done, fail, onRow});
    port.postMessage({id: last, kind, ...message});
  });
  about ??= await ask('load', message);
  const [C, H, W] = about.shape;
  return {
    about,  // {parts, sigma, noise, kernel, shape}
    // The base noise [smooth, reverse] of n images: that of `sm.uniforms(n, torch.Generator().manual_seed(seed))`
    uniforms(n, seed) { const rand = torchRand(seed); return [rand(n*(C + 1)*H*W), rand(n*(C + 1)*H*W)]; },
    // A promise of (n, C, H, W); `onRow(row, values (n, C, W), part)`; a call cancels the one before it
    sample({onRow, ...options}) { return ask('draw', {options}, onRow); },
    // {weights, means, scales, values, uniforms} of a pixel {part, image, row, column} of the last drawing, or null
    mixture(where) { return ask('mixture', {where}); },
    cancel() { return ask('cancel'); },
    close() { port.terminate ? port.terminate() : port.close(); },
  };
}

// `source`: bytes of a weights file, or its address. `plain` and `worker` are for tests: JavaScript alone, this thread alone
export async function load(source, {plain = false, worker = true} = {}) {
  const weights = await unpack(await bytesOf(source));
  const kernels = Object.fromEntries(Object.entries(KERNELS).map(([name, text]) => [name, fromBase64(text)]));
  return connect(openPort(worker), {weights, kernels, plain});
}
