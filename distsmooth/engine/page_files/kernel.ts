// The arithmetic of the page: four loops over rows of float32, in WebAssembly SIMD (AssemblyScript).
// Rebuilt by `distsmooth.engine.page.build_kernel`; its bytes stand as base64 in sampler.js.
// A tensor is a pointer and two strides in bytes: `xb` from image to image, `xn` from column to column.
// Channels are neighbours, in multiples of 16.

// @ts-ignore: decorator
@inline function madd(a: v128, b: v128, c: v128): v128 {
  if (ASC_FEATURE_RELAXED_SIMD) return f32x4.relaxed_madd(a, b, c);
  return f32x4.add(f32x4.mul(a, b), c);
}

// out[b][n] += weight @ x[b][n]: x has K numbers, out has M; the weight is packed [M/16][K][16]
export function gemm(out: usize, ob: usize, on: usize, x: usize, xb: usize, xn: usize,
                     weight: usize, K: usize, M: usize, N: usize, B: usize): void {
  const panel: usize = K << 6;
  for (let m: usize = 0; m < M; m += 16, weight += panel, out += 64) {
    for (let b: usize = 0; b < B; b++) {
      let o = out + b*ob, xs = x + b*xb, n: usize = 0;
      for (; n + 2 <= N; n += 2, o += 2*on, xs += 2*xn) {  // two columns share each weight
        const o2 = o + on, x2 = xs + xn;
        let a0 = v128.load(o), a1 = v128.load(o, 16), a2 = v128.load(o, 32), a3 = v128.load(o, 48);
        let c0 = v128.load(o2), c1 = v128.load(o2, 16), c2 = v128.load(o2, 32), c3 = v128.load(o2, 48);
        let w = weight;
        for (let k: usize = 0; k < K; k++, w += 64) {
          const s = v128.load32_splat(xs + (k << 2)), t = v128.load32_splat(x2 + (k << 2));
          const w0 = v128.load(w), w1 = v128.load(w, 16), w2 = v128.load(w, 32), w3 = v128.load(w, 48);
          a0 = madd(w0, s, a0); c0 = madd(w0, t, c0);
          a1 = madd(w1, s, a1); c1 = madd(w1, t, c1);
          a2 = madd(w2, s, a2); c2 = madd(w2, t, c2);
          a3 = madd(w3, s, a3); c3 = madd(w3, t, c3);
        }
        v128.store(o, a0); v128.store(o, a1, 16); v128.store(o, a2, 32); v128.store(o, a3, 48);
        v128.store(o2, c0); v128.store(o2, c1, 16); v128.store(o2, c2, 32); v128.store(o2, c3, 48);
      }
      if (n == N) continue;
      let a0 = v128.load(o), a1 = v128.load(o, 16), a2 = v128.load(o, 32), a3 = v128.load(o, 48);
      let c0 = f32x4.splat(0), c1 = c0, c2 = c0, c3 = c0;  // even and odd k apart: no sum waits for the last
      let w = weight, k: usize = 0;
      for (; k + 2 <= K; k += 2, w += 128) {
        const s = v128.load32_splat(xs + (k << 2)), t = v128.load32_splat(xs + (k << 2), 4);
        a0 = madd(v128.load(w), s, a0); c0 = madd(v128.load(w, 64), t, c0);
        a1 = madd(v128.load(w, 16), s, a1); c1 = madd(v128.load(w, 80), t, c1);
        a2 = madd(v128.load(w, 32), s, a2); c2 = madd(v128.load(w, 96), t, c2);
        a3 = madd(v128.load(w, 48), s, a3); c3 = madd(v128.load(w, 112), t, c3);
      }
      if (k < K) {
        const s = v128.load32_splat(xs + (k << 2));
        a0 = madd(v128.load(w), s, a0); a1 = madd(v128.load(w, 16), s, a1);
        a2 = madd(v128.load(w, 32), s, a2); a3 = madd(v128.load(w, 48), s, a3);
      }
      v128.store(o, f32x4.add(a0, c0)); v128.store(o, f32x4.add(a1, c1), 16);
      v128.store(o, f32x4.add(a2, c2), 32); v128.store(o, f32x4.add(a3, c3), 48);
    }
  }
}

// @ts-ignore: decorator
@inline function f4(v: f32): v128 { return f32x4.splat(v); }

// exp(t) for t <= 0, to the last bit or two: 2 to the whole part, times a polynomial (Cephes)
// @ts-ignore: decorator
@inline function expNegative(t: v128): v128 {
  t = f32x4.max(t, f4(-87));
  const n = f32x4.nearest(f32x4.mul(t, f4(1.44269504088896341)));
  const r = f32x4.sub(f32x4.sub(t, f32x4.mul(n, f4(0.693359375))), f32x4.mul(n, f4(-2.12194440e-4)));
  let p = f4(1.9875691500e-4);
  p = f32x4.add(f32x4.mul(p, r), f4(1.3981999507e-3));
  p = f32x4.add(f32x4.mul(p, r), f4(8.3334519073e-3));
  p = f32x4.add(f32x4.mul(p, r), f4(4.1665795894e-2));
  p = f32x4.add(f32x4.mul(p, r), f4(1.6666665459e-1));
  p = f32x4.add(f32x4.mul(p, r), f4(5.0000001201e-1));
  p = f32x4.add(f32x4.mul(f32x4.mul(p, r), r), f32x4.add(r, f4(1)));
  const scale = i32x4.shl(i32x4.add(i32x4.trunc_sat_f32x4_s(n), i32x4.splat(127)), 23);
  return f32x4.mul(p, scale);
}

// out[b][n] = elu(x), elu(-x): C numbers become 2*C
export function celu(out: usize, ob: usize, on: usize, x: usize, xb: usize, xn: usize,
                     C: usize, N: usize, B: usize): void {
  const size = C << 2;
  for (let b: usize = 0; b < B; b++) for (let n: usize = 0; n < N; n++) {
    const o = out + b*ob + n*on, s = x + b*xb + n*xn;
    for (let c: usize = 0; c < size; c += 16) {
      const v = v128.load(s + c), minus = f32x4.neg(v), positive = f32x4.gt(v, f4(0));
      const e = f32x4.sub(expNegative(f32x4.min(v, minus)), f4(1));
      v128.store(o + c, v128.bitselect(v, e, positive));
      v128.store(o + size + c, v128.bitselect(e, minus, positive));
    }
  }
}

// out[b][n] += h * sigmoid(gate): h[b][n] has C numbers, then the C of the gate
export function gated(out: usize, ob: usize, on: usize, h: usize, hb: usize, hn: usize,
                      C: usize, N: usize, B: usize): void {
  const size = C << 2;
  for (let b: usize = 0; b < B; b++) for (let n: usize = 0; n < N; n++) {
    const o = out + b*ob + n*on, s = h + b*hb + n*hn;
    for (let c: usize = 0; c < size; c += 16) {
      const g = v128.load(s + size + c), e = expNegative(f32x4.min(g, f32x4.neg(g)));
      const top = v128.bitselect(f4(1), e, f32x4.gt(g, f4(0)));
      const part = f32x4.div(f32x4.mul(v128.load(s + c), top), f32x4.add(f4(1), e));
      v128.store(o + c, f32x4.add(v128.load(o + c), part));
    }
  }
}

// out[b][n] = x[b][n]: C numbers; strides of 0 repeat one vector, such as a bias
export function copy(out: usize, ob: usize, on: usize, x: usize, xb: usize, xn: usize,
                     C: usize, N: usize, B: usize): void {
  const size = C << 2;
  for (let b: usize = 0; b < B; b++) for (let n: usize = 0; n < N; n++) {
    const o = out + b*ob + n*on, s = x + b*xb + n*xn;
    for (let c: usize = 0; c < size; c += 16) v128.store(o + c, v128.load(s + c));
  }
}
