// What a member adds to its centre, in one pass over memory.
//
// Plain C functions on raw pointers, so that they build in seconds and need no header of
// PyTorch. All tensors are dense and channels-last; T is float or bfloat16.

#include "after.h"
#include "depthwise.h"
#include "layer.h"
#include "layer_norm.h"
#include "sums.h"
#include "vectors.h"

namespace {

struct Scratch {
  std::vector<float> row, planes, stencil, taps;
};

// A layer as one image's loops see it. A kernel of one tap reads only the pixels that the
// stride meets, so for it the planes have the size of the result.
struct Walk {
  int height, width, step_y, step_x;  // of the planes, and over x to fill them
  int pad_y, pad_x, across;           // zeros around the planes; length of their rows
  int stride_y, stride_x;             // over the planes
  int64_t plane;

  explicit Walk(const Layer& l) {
    const bool thin = l.kernel_height * l.kernel_width == 1 && !l.pad_height && !l.pad_width;
    height = thin ? l.out_height : l.height;
    width = thin ? l.out_width : l.width;
    step_y = thin ? l.stride_height : 1;
    step_x = thin ? l.stride_width : 1;
    stride_y = thin ? 1 : l.stride_height;
    stride_x = thin ? 1 : l.stride_width;
    pad_y = l.pad_height;
    pad_x = l.pad_width;
    across = width + 2 * pad_x;
    plane = int64_t(height + 2 * pad_y) * across;
  }
};

// row[p] = sign * dot product over the channels of every pixel.
template <int V, typename T>
void fill_row(const Layer& l, const Walk& w, const T* x, const float* right, float sign,
              float* row) {
  const int pixels = w.height * w.width;
  int p = 0;
  if (w.step_x == 1 && w.step_y == 1 && l.channels % V == 0)
    for (; p + V <= pixels; p += V)
      store<V>(row + p,
               dots<V>(x + int64_t(p) * l.pixel(), right, l.channels, l.pixel()) * sign);
  if (p == 0 && w.step_x > 1 && l.channels % V == 0) {
    // Pixels with gaps between them: V of a row at a time, the last V anew where need be.
    for (int y = 0; y < w.height && w.width >= V; ++y) {
      const T* from = x + int64_t(y) * w.step_y * l.width * l.pixel();
      for (int i = 0; i < w.width; i += V) {
        const int at = i + V <= w.width ? i : w.width - V;
        store<V>(row + y * w.width + at,
                 dots<V>(from + int64_t(at) * w.step_x * l.pixel(), right, l.channels,
                         w.step_x * l.pixel()) * sign);
      }
    }
    if (w.width >= V) return;
  }
  for (int y = p / w.width; y < w.height; ++y)
    for (int i = y == p / w.width ? p % w.width : 0; i < w.width; ++i) {
      const int64_t at = int64_t(y) * w.step_y * l.width + i * w.step_x;
      row[y * w.width + i] = dot<V>(x + at * l.pixel(), right, l.channels) * sign;
    }
}

// planes[r], with zeros around: mixtures of the channels, or the channels themselves.
template <typename T>
void fill_planes(const Layer& l, const Walk& w, const T* x, int64_t pair, float sign,
                 Scratch& s) {
  for (int r = 0; r < l.rank; ++r) {
    if (l.right) {
      const float* right = l.right + pair * l.right_stride + r * l.channels;
      (l.channels % 16 == 0 ? fill_row<16, T> : fill_row<8, T>)(l, w, x, right, sign,
                                                                s.row.data());
    } else {
      float* row = s.row.data();
      for (int y = 0; y < w.height; ++y, row += w.width) {
        const T* from = x + int64_t(y) * w.step_y * l.width * l.pixel() + r;
        if (l.pixel() == 1 && w.step_x == 1)
          for (int i = 0; i < w.width; ++i) row[i] = widen(from[i]) * sign;
        else
          for (int i = 0; i < w.width; ++i)
            row[i] = widen(from[int64_t(i) * w.step_x * l.pixel()]) * sign;
      }
    }
    float* to = &s.planes[r * w.plane + w.pad_y * w.across + w.pad_x];
    for (int y = 0; y < w.height; ++y)
      std::memcpy(to + y * w.across, &s.row[y * w.width], w.width * sizeof(float));
  }
}

// Separable noise: planes[r] becomes its own stencil, [out_height, out_width].
void stencil_planes(const Layer& l, const Walk& w, int64_t pair, Scratch& s) {
  const int kernel = l.kernel_height * l.kernel_width;
  const int64_t out_plane = int64_t(l.out_height) * l.out_width;
  std::memset(s.stencil.data(), 0, out_plane * l.rank * sizeof(float));
  for (int r = 0; r < l.rank; ++r) {
    const float* taps = l.taps + pair * l.taps_stride + r * kernel;
    for (int y = 0; y < l.out_height; ++y) {
      float* __restrict__ to = &s.stencil[r * out_plane + int64_t(y) * l.out_width];
      for (int ky = 0; ky < l.kernel_height; ++ky)
        for (int kx = 0; kx < l.kernel_width; ++kx) {
          const float tap = taps[ky * l.kernel_width + kx];
          const float* __restrict__ from =
              &s.planes[r * w.plane +
                        int64_t(y * w.stride_y + ky * l.dilation_height) * w.across +
                        kx * l.dilation_width];
          if (w.stride_x == 1)
            for (int i = 0; i < l.out_width; ++i) to[i] += from[i] * tap;
          else
            for (int i = 0; i < l.out_width; ++i) to[i] += from[i * w.stride_x] * tap;
        }
    }
  }
}

// Where a row of the result takes its terms from, relative to the row's first pixel.
struct Terms {
  int count, stride, across;
  std::vector<int64_t> offsets;
};

// What a row of the result is made of, beside the terms; V outputs of each pixel.
template <typename T> struct Line {
  const T* product;   // of the centre, or null
  const T* residual;  // or null
  T* out;
  int width, step, lanes;  // pixels; numbers from one to the next; outputs that are there
};

template <int V, bool W, typename T>
inline __attribute__((always_inline)) typename Lanes<V>::F start(typename Lanes<V>::F base,
                                                                 typename Lanes<V>::F factor,
                                                                 const Line<T>& line, int64_t at) {
  auto read = [&](const T* from) {
    return W ? load<V>(from + at) : load_some<V>(from + at, line.lanes);
  };
  if (line.product) base += read(line.product) * factor;
  if (line.residual) base += read(line.residual);
  return base;
}

// A kernel of 3 x 3 with stride 1: P pixels at a time, which share what they read.
template <int V, int P, typename T>
inline __attribute__((always_inline)) void spread_nine(
    const float* from, const Terms& terms, const Activation<V>& act, const typename Lanes<V>::F* tap,
    typename Lanes<V>::F base, typename Lanes<V>::F factor, const Line<T>& line, int64_t at) {
  typename Lanes<V>::F sum[P];
  for (int p = 0; p < P; ++p)
    sum[p] = start<V, true>(base, factor, line, at + int64_t(p) * line.step);
  for (int row = 0; row < 3; ++row, from += terms.across)
    for (int column = 0; column < P + 2; ++column) {
      const float value = from[column];
      for (int p = 0; p < P; ++p)
        if (column >= p && column - p < 3) sum[p] += value * tap[3 * row + column - p];
    }
  for (int p = 0; p < P; ++p)
    store<V>(line.out + at + int64_t(p) * line.step, act(sum[p]));
}

// out[pixel, lanes] = act(base + product * factor + residual + sum_k planes[pixel + offset_k] *
// taps_k), one row. K: 9 for a 3 x 3 kernel without dilation, 1 for a single term, 0 for any;
// W: whether all lanes are there.
template <int V, int K, bool W, typename T>
inline __attribute__((always_inline)) void spread(const float* planes, const Terms& terms,
                                                  const After& a, const float* taps,
                                                  const Line<T> line) {
  typedef typename Lanes<V>::F F;
  const Activation<V> act(a);
  F tap[K ? K : 1];
  for (int k = 0; k < K; ++k) tap[k] = load<V>(taps + k * V);
  const F base = load<V>(taps + terms.count * V), factor = load<V>(taps + (terms.count + 1) * V);
  int i = 0;
  if (K == 9 && terms.stride == 1)
    for (; i + 4 <= line.width; i += 4)
      spread_nine<V, 4>(planes + i, terms, act, tap, base, factor, line, int64_t(i) * line.step);
  for (; i < line.width; ++i) {
    const float* from = planes + int64_t(i) * terms.stride;
    const int64_t at = int64_t(i) * line.step;
    F sum = start<V, W>(base, factor, line, at);
    if (K == 9) {
      const float *middle = from + terms.across, *last = middle + terms.across;
      F more = from[1] * tap[1];
      sum += from[0] * tap[0];
      sum += from[2] * tap[2];
      more += middle[0] * tap[3];
      sum += middle[1] * tap[4];
      more += middle[2] * tap[5];
      sum += last[0] * tap[6];
      more += last[1] * tap[7];
      sum += last[2] * tap[8];
      sum += more;
    } else if (K == 1) {
      sum += from[0] * tap[0];
    } else {
      for (int k = 0; k < terms.count; ++k)
        sum += from[terms.offsets[k]] * load<V>(taps + k * V);
    }
    sum = act(sum);
    if (W)
      store<V>(line.out + at, sum);
    else
      store_some<V>(line.out + at, sum, line.lanes);
  }
}

// The member's factors of a group's outputs, a block of V lanes after the other; last what is
// added to every pixel, and what the centre's product is multiplied by.
template <int V>
void gather_taps(const Layer& l, const Own& own, int terms, int64_t pair, float sign, int group,
                 float* to) {
  for (int block = 0; block < l.outputs; block += V) {
    const int lanes = l.outputs - block < V ? l.outputs - block : V;
    const int first = group * l.outputs + block;
    auto read = [&](const float* from) {
      return lanes == V ? load<V>(from + first) : load_some<V>(from + first, lanes);
    };
    const auto factor = load<V>(&own.scale[first]);
    for (int k = 0; k < terms; ++k, to += V)
      store<V>(to, read(l.left + pair * l.left_stride + int64_t(k) * l.out_pixel()) *
                       read(l.scale) * factor);
    auto base = load<V>(&own.shift[first]);
    if (l.shift_noise)
      base += read(l.shift_noise + pair * l.shift_stride) * read(l.shift_scale) * sign * factor;
    store<V>(to, base);
    store<V>(to + V, factor);
    to += 2 * V;
  }
}

Terms terms_of(const Layer& l, const Walk& w) {
  Terms terms{0, l.separable ? 1 : w.stride_x, w.across, {}};
  if (l.left && l.separable) {
    terms.count = l.rank;
    for (int r = 0; r < l.rank; ++r) terms.offsets.push_back(r * int64_t(l.out_height) * l.out_width);
  } else if (l.left) {
    terms.count = l.rank * l.kernel_height * l.kernel_width;
    for (int r = 0; r < l.rank; ++r)
      for (int ky = 0; ky < l.kernel_height; ++ky)
        for (int kx = 0; kx < l.kernel_width; ++kx)
          terms.offsets.push_back(r * w.plane + int64_t(ky) * l.dilation_height * w.across +
                                  kx * l.dilation_width);
  }
  return terms;
}

// V outputs of a row of features, or one: what its member adds.
template <typename F, typename Load>
inline __attribute__((always_inline)) F corrected(const Layer& l, int rank, int o,
                                                  const float* left, const float* sums,
                                                  const float* shift, float sign, Load from) {
  F sum = {};
  for (int r = 0; r < rank; ++r) sum += from(left + int64_t(r) * l.outputs + o) * sums[r];
  if (rank) sum *= from(l.scale + o);
  if (shift) sum += from(shift + o) * from(l.shift_scale + o) * sign;
  return sum;
}

// Planes that are the channels, as weights of a member's own or dense noise: too many for sums
// of a few outputs each, so all outputs are summed at once and the planes walked as they lie.
template <int V>
void sum_planes(const float* left, const float* sums, int rank, int outputs, float* total) {
  typedef typename Lanes<V>::F F;
  std::memset(total, 0, outputs * sizeof(float));
  int r = 0;
  for (; r + 4 <= rank; r += 4, left += 4 * int64_t(outputs)) {
    const float *a = left, *b = a + outputs, *c = b + outputs, *d = c + outputs;
    const float p = sums[r], q = sums[r + 1], s = sums[r + 2], t = sums[r + 3];
    int o = 0;
    for (; o + V <= outputs; o += V) {
      const F more = load<V>(a + o) * p + load<V>(b + o) * q + load<V>(c + o) * s +
                     load<V>(d + o) * t;
      store<V>(total + o, load<V>(total + o) + more);
    }
    for (; o < outputs; ++o) total[o] += a[o] * p + b[o] * q + c[o] * s + d[o] * t;
  }
  for (; r < rank; ++r, left += outputs)
    for (int o = 0; o < outputs; ++o) total[o] += left[o] * sums[r];
}

// An image of a single pixel, as a row of features is: nothing is prepared for others.
template <int V, typename T>
void correct_rows(const Layer& l, const After& a, const T* x, const T* product,
                  const T* residual, T* out, const int64_t* rows, const float* signs,
                  int64_t images) {
  typedef typename Lanes<V>::F F;
  static thread_local std::vector<float> sums, totals;
  static thread_local Own own;
  const bool dense = l.left && !l.right;
  const Activation<V> act(a);
  const bool owns = a.scale || a.scale_noise || a.shift || a.shift_noise;
  sums.resize(l.rank + 1);
  totals.resize(l.outputs);
  float* const sum = sums.data();
  for (int64_t n = 0; n < images; ++n, x += l.channels, out += l.outputs) {
    const float sign = signs[n];
    const float* right = l.right ? l.right + rows[n] * l.right_stride : nullptr;
    const float* left = l.left ? l.left + rows[n] * l.left_stride : nullptr;
    const float* shift = l.shift_noise ? l.shift_noise + rows[n] * l.shift_stride : nullptr;
    if (owns) own.gather(a, l.outputs, rows[n], sign);
    for (int r = 0; r < l.rank; ++r)
      sum[r] = sign * (right ? dot<V>(x, right + int64_t(r) * l.channels, l.channels)
                             : widen(x[r]));
    int rank = l.rank;
    if (dense) {  // what is left to be summed is one plane, as it is
      sum_planes<V>(left, sum, rank, l.outputs, totals.data());
      left = totals.data(), rank = 1, sum[0] = 1.0f;
    }
    int o = 0;
    for (; o + V <= l.outputs; o += V) {
      F value = corrected<F>(l, rank, o, left, sum, shift, sign,
                             [](const float* from) { return load<V>(from); });
      if (product) value += load<V>(product + o);
      if (owns) value = value * load<V>(&own.scale[o]) + load<V>(&own.shift[o]);
      if (residual) value += load<V>(residual + o);
      store<V>(out + o, act(value));
    }
    for (; o < l.outputs; ++o) {
      float value = corrected<float>(l, rank, o, left, sum, shift, sign,
                                     [](const float* from) { return *from; });
      if (product) value += widen(product[o]);
      if (owns) value = value * own.scale[o] + own.shift[o];
      if (residual) value += widen(residual[o]);
      store_some<V>(out + o, act(F{value}), 1);
    }
    if (product) product += l.outputs;
    if (residual) residual += l.outputs;
  }
}

template <int V, typename T>
void correct(const Layer& l, const After& a, const T* x, const T* product, const T* residual,
             T* out, const int64_t* rows, const float* signs, int64_t images) {
  static thread_local Scratch s;
  static thread_local Own own;
  if (l.height * l.width * l.kernel_height * l.kernel_width * l.groups == 1 && !l.separable &&
      l.out_height * l.out_width == 1)
    return correct_rows<V, T>(l, a, x, product, residual, out, rows, signs, images);
  const Walk w(l);
  const int64_t out_plane = int64_t(l.out_height) * l.out_width;
  const Terms terms = terms_of(l, w);
  const bool three = !l.separable && l.kernel_height == 3 && l.kernel_width == 3 &&
                     terms.count == 9 && l.dilation_height == 1 && l.dilation_width == 1;
  const int blocks = (l.outputs + V - 1) / V;
  s.row.resize(w.height * w.width);
  s.planes.assign(w.plane * l.rank, 0.0f);  // the zeros around stay for all images
  if (l.separable) s.stencil.resize(out_plane * l.rank);
  s.taps.resize(int64_t(blocks) * (terms.count + 2) * V);
  const float* planes = l.separable ? s.stencil.data() : s.planes.data();
  const int64_t down = l.separable ? l.out_width : int64_t(w.stride_y) * w.across;
  const int64_t in = int64_t(l.height) * l.width * l.pixel(), result = out_plane * l.out_pixel();
  for (int64_t n = 0; n < images; ++n) {
    own.gather(a, l.out_pixel(), rows[n], signs[n]);
    for (int g = 0; g < l.groups; ++g) {
      if (l.left) fill_planes(l, w, x + n * in + g * l.channels, rows[n], signs[n], s);
      if (l.left && l.separable) stencil_planes(l, w, rows[n], s);
      gather_taps<V>(l, own, terms.count, rows[n], signs[n], g, s.taps.data());
      for (int y = 0; y < l.out_height; ++y)
        for (int b = 0; b < blocks; ++b) {
          const int lanes = l.outputs - b * V < V ? l.outputs - b * V : V;
          const float* taps = &s.taps[int64_t(b) * (terms.count + 2) * V];
          const int64_t at = n * result + int64_t(y) * l.out_width * l.out_pixel() +
                             g * l.outputs + b * V;
          const Line<T> line{product ? product + at : nullptr, residual ? residual + at : nullptr,
                             out + at, l.out_width, l.out_pixel(), lanes};
          const float* row = planes + y * down;
          if (three && lanes == V)
            spread<V, 9, true, T>(row, terms, a, taps, line);
          else if (terms.count == 1 && lanes == V)
            spread<V, 1, true, T>(row, terms, a, taps, line);
          else if (lanes == V)
            spread<V, 0, true, T>(row, terms, a, taps, line);
          else
            spread<V, 0, false, T>(row, terms, a, taps, line);
        }
    }
  }
}

#if defined(__AVX512BF16__) && defined(__AVX512VL__)

// Products of pairs of bfloat16, added to float: one step of a convolution.
inline Lanes<16>::F pairs_dot(Lanes<16>::F sum, int32_t pair, const bfloat16* weights) {
  __m512bh w;
  std::memcpy(&w, weights, sizeof w);
  return (Lanes<16>::F)_mm512_dpbf16_ps((__m512)sum, w, (__m512bh)_mm512_set1_epi32(pair));
}
inline Lanes<8>::F pairs_dot(Lanes<8>::F sum, int32_t pair, const bfloat16* weights) {
  __m256bh w;
  std::memcpy(&w, weights, sizeof w);
  return (Lanes<8>::F)_mm256_dpbf16_ps((__m256)sum, w, (__m256bh)_mm256_set1_epi32(pair));
}

// A convolution of the centre and what the member adds, with its shift and rectifier.
struct Fused {
  const bfloat16* weights;  // [blocks of V outputs, kernel, pairs of channels, V, 2]
  const float* shift;       // [outputs]
};

// Where a block of R x Q pixels of the result reads and writes.
struct Block {
  const bfloat16* x;    // the padded image at the first pixel
  const float* planes;  // what members add, at the first pixel
  const bfloat16* residual;
  bfloat16* out;
};

template <int C2, int S, int V, int Q, int R>
void convolve_block(const Layer& l, const Terms& terms, int across, int64_t plane_row,
                    const float* taps, const bfloat16* weights, typename Lanes<V>::F base,
                    const Activation<V>& act, Block at) {
  typedef typename Lanes<V>::F F;
  const int64_t row = int64_t(l.out_width) * l.outputs;
  F sum[R][Q];
  for (int r = 0; r < R; ++r)
    for (int q = 0; q < Q; ++q)
      sum[r][q] = at.residual ? base + load<V>(at.residual + r * row + int64_t(q) * l.outputs)
                              : base;
  for (int k = 0; k < terms.count; ++k) {
    const F tap = load<V>(taps + k * V);
    const float* from = at.planes + terms.offsets[k];
    if (terms.stride == S)
      for (int r = 0; r < R; ++r)
        for (int q = 0; q < Q; ++q) sum[r][q] += from[r * plane_row + q * S] * tap;
    else  // planes of the pixels alone that the stride meets
      for (int r = 0; r < R; ++r)
        for (int q = 0; q < Q; ++q) sum[r][q] += from[r * plane_row + q] * tap;
  }
  for (int ky = 0; ky < l.kernel_height; ++ky)
    for (int kx = 0; kx < l.kernel_width; ++kx) {
      const bfloat16* from = at.x + (int64_t(ky) * l.dilation_height * across +
                                     kx * l.dilation_width) * (2 * C2);
      for (int c = 0; c < C2; ++c, weights += 2 * V)
        for (int r = 0; r < R; ++r)
          for (int q = 0; q < Q; ++q) {
            int32_t pair;
            std::memcpy(&pair, from + (int64_t(r) * S * across + q * S) * (2 * C2) + 2 * c, 4);
            sum[r][q] = pairs_dot(sum[r][q], pair, weights);
          }
    }
  for (int r = 0; r < R; ++r)
    for (int q = 0; q < Q; ++q)
      store<V>(at.out + r * row + int64_t(q) * l.outputs,
               act(sum[r][q]));
}

template <int C2, int S, int V>
void convolve_image(const Layer& l, const Walk& w, const Terms& terms, const Fused& f,
                    const Activation<V>& act, const bfloat16* padded, const float* planes, const float* taps,
                    const bfloat16* residual, bfloat16* out) {
  const int across = l.width + 2 * l.pad_width;
  const int64_t plane_row = l.separable ? l.out_width : int64_t(w.stride_y) * w.across;
  const int64_t weights = int64_t(l.kernel_height) * l.kernel_width * C2 * 2 * V;
  for (int b = 0; b < l.outputs / V; ++b) {
    const float* tap = taps + int64_t(b) * (terms.count + 2) * V;
    const auto base = load<V>(tap + terms.count * V) + load<V>(f.shift + b * V);
    auto run = [&](auto block, int y, int i) {
      const int64_t to = (int64_t(y) * l.out_width + i) * l.outputs + b * V;
      block(l, terms, across, plane_row, tap, f.weights + b * weights, base, act,
            Block{padded + (int64_t(y) * S * across + int64_t(i) * S) * (2 * C2),
                            planes + y * plane_row + int64_t(i) * terms.stride,
                            residual ? residual + to : nullptr, out + to});
    };
    for (int y = 0; y < l.out_height;) {
      const bool two = y + 2 <= l.out_height && l.out_width <= 4;
      int i = 0;
      for (; i + 14 <= l.out_width; i += 14) run(convolve_block<C2, S, V, 14, 1>, y, i);
      for (; i + 7 <= l.out_width; i += 7) run(convolve_block<C2, S, V, 7, 1>, y, i);
      for (; two && i + 4 <= l.out_width; i += 4) run(convolve_block<C2, S, V, 4, 2>, y, i);
      for (; !two && i + 4 <= l.out_width; i += 4) run(convolve_block<C2, S, V, 4, 1>, y, i);
      for (; i < l.out_width; ++i) {
        run(convolve_block<C2, S, V, 1, 1>, y, i);
        if (two) run(convolve_block<C2, S, V, 1, 1>, y + 1, i);
      }
      y += two ? 2 : 1;
    }
  }
}

template <int C2, int S, int V>
void convolve(const Layer& l, const Fused& f, const After& after, const bfloat16* x,
              const bfloat16* residual,
              bfloat16* out, const int64_t* rows, const float* signs, int64_t images) {
  static thread_local Scratch s;
  static thread_local std::vector<bfloat16> padded;
  static thread_local Own own;
  const Walk w(l);
  const Terms terms = terms_of(l, w);
  const int across = l.width + 2 * l.pad_width, blocks = l.outputs / V;
  padded.assign(int64_t(l.height + 2 * l.pad_height) * across * 2 * C2, bfloat16{0});
  s.row.resize(w.height * w.width);
  s.planes.assign(w.plane * l.rank, 0.0f);
  s.taps.resize(int64_t(blocks) * (terms.count + 2) * V);
  own.gather(After{}, l.outputs, 0, 0);
  if (l.separable) s.stencil.resize(int64_t(l.out_height) * l.out_width * l.rank);
  const float* planes = l.separable ? s.stencil.data() : s.planes.data();
  const int64_t in = int64_t(l.height) * l.width * l.channels;
  const int64_t result = int64_t(l.out_height) * l.out_width * l.outputs;
  for (int64_t n = 0; n < images; ++n) {
    for (int y = 0; y < l.height; ++y) {
      bfloat16* to = &padded[(int64_t(y + l.pad_height) * across + l.pad_width) * 2 * C2];
      const bfloat16* from = x + n * in + int64_t(y) * l.width * l.channels;
      if (l.channels == 2 * C2)
        std::memcpy(to, from, sizeof(bfloat16) * l.width * l.channels);
      else  // one channel, and nothing beside it
        for (int i = 0; i < l.width; ++i) to[2 * i] = from[i];
    }
    if (l.left) fill_planes(l, w, x + n * in, rows[n], signs[n], s);
    if (l.left && l.separable) stencil_planes(l, w, rows[n], s);
    gather_taps<V>(l, own, terms.count, rows[n], signs[n], 0, s.taps.data());
    convolve_image<C2, S, V>(l, w, terms, f, Activation<V>(after), padded.data(), planes, s.taps.data(),
                             residual ? residual + n * result : nullptr, out + n * result);
  }
}

typedef void (*Convolve)(const Layer&, const Fused&, const After&, const bfloat16*, const bfloat16*, bfloat16*,
                         const int64_t*, const float*, int64_t);

template <int C2> Convolve convolution(int stride, int outputs) {
  if (outputs % 16 == 0) return stride == 1 ? convolve<C2, 1, 16> : convolve<C2, 2, 16>;
  return stride == 1 ? convolve<C2, 1, 8> : convolve<C2, 2, 8>;
}

// Null for what is not built: few channels, and a stride of 1 or 2, are.
Convolve convolution_for(const Layer& l) {
  if (l.outputs % 8 || l.stride_height != l.stride_width || l.stride_width > 2) return nullptr;
  switch (l.channels) {
    case 1: return convolution<1>(l.stride_width, l.outputs);
    case 4: return convolution<2>(l.stride_width, l.outputs);
    case 8: return convolution<4>(l.stride_width, l.outputs);
    case 16: return convolution<8>(l.stride_width, l.outputs);
    default: return nullptr;
  }
}

#endif

// act(x[image, pixel, c] * scale[c] + shift[c] (+ residual)), each with a member's noise.
template <int V, typename T>
void affine(const After& a, const T* x, const T* residual, T* out, const int64_t* rows,
            const float* signs, int64_t images, int64_t pixels, int channels) {
  static thread_local Own own;
  const Activation<V> act(a);
  for (int64_t n = 0; n < images; ++n) {
    own.gather(a, channels, rows[n], signs[n]);
    for (int64_t p = 0; p < pixels; ++p) {
      const int64_t pixel = (n * pixels + p) * channels;
      for (int c = 0; c < channels; c += V) {
        const int lanes = channels - c < V ? channels - c : V;
        const int64_t at = pixel + c;
        auto value = lanes == V ? load<V>(x + at) : load_some<V>(x + at, lanes);
        value = value * load<V>(&own.scale[c]) + load<V>(&own.shift[c]);
        if (residual)
          value += lanes == V ? load<V>(residual + at) : load_some<V>(residual + at, lanes);
        value = act(value);
        if (lanes == V) store<V>(out + at, value);
        else store_some<V>(out + at, value, lanes);
      }
    }
  }
}

template <typename T>
void fold(const float* weight, const float* scale, T* out, int64_t outputs, int64_t channels,
          int64_t taps) {
  for (int64_t o = 0; o < outputs; ++o, weight += channels * taps)
    for (int64_t k = 0; k < taps; ++k) {
      int64_t c = 0;
      for (; c + 8 <= channels; c += 8, out += 8) {
        Lanes<8>::F eight;
        for (int v = 0; v < 8; ++v) eight[v] = weight[(c + v) * taps + k];
        store<8>(out, eight * scale[o]);
      }
      if (c < channels) {
        Lanes<8>::F rest = {};
        for (int v = 0; c + v < channels; ++v) rest[v] = weight[(c + v) * taps + k];
        store_some<8>(out, rest * scale[o], int(channels - c));
        out += channels - c;
      }
    }
}

}  // namespace

extern "C" {

// out = act(scale * (product + what each image's member adds) + shift + residual); null is nothing.
void correct_float(const Layer* l, const After* a, const float* x, const float* product,
                   const float* residual, float* out, const int64_t* rows, const float* signs,
                   int64_t images) {
  (l->outputs % 16 == 0 ? correct<16, float> : correct<8, float>)(
      *l, *a, x, product, residual, out, rows, signs, images);
}
void correct_bfloat16(const Layer* l, const After* a, const void* x, const void* product,
                      const void* residual, void* out, const int64_t* rows, const float* signs,
                      int64_t images) {
  (l->outputs % 16 == 0 ? correct<16, bfloat16> : correct<8, bfloat16>)(
      *l, *a, (const bfloat16*)x, (const bfloat16*)product, (const bfloat16*)residual,
      (bfloat16*)out, rows, signs, images);
}

// out = act(scale * (conv(x, member's weights) + member's shift) + shift + residual), every
// channel on its own: weights [kernel, channels], shift [channels]; the layer's `left` is
// [pair][kernel, channels].
void depthwise_float(const Layer* l, const After* a, const float* weights, const float* shift,
                     const float* x, const float* residual, float* out, const int64_t* rows,
                     const float* signs, int64_t images) {
  (l->groups % 16 == 0 ? depthwise<16, float> : depthwise<8, float>)(
      *l, *a, weights, shift, x, residual, out, rows, signs, images);
}
void depthwise_bfloat16(const Layer* l, const After* a, const float* weights, const float* shift,
                        const void* x, const void* residual, void* out, const int64_t* rows,
                        const float* signs, int64_t images) {
  (l->groups % 16 == 0 ? depthwise<16, bfloat16> : depthwise<8, bfloat16>)(
      *l, *a, weights, shift, (const bfloat16*)x, (const bfloat16*)residual, (bfloat16*)out, rows,
      signs, images);
}

void affine_float(const After* a, const float* x, const float* residual, float* out,
                  const int64_t* rows, const float* signs, int64_t images, int64_t pixels,
                  int32_t channels) {
  (channels % 16 == 0 ? affine<16, float> : affine<8, float>)(
      *a, x, residual, out, rows, signs, images, pixels, channels);
}
void affine_bfloat16(const After* a, const void* x, const void* residual, void* out,
                     const int64_t* rows, const float* signs, int64_t images, int64_t pixels,
                     int32_t channels) {
  (channels % 16 == 0 ? affine<16, bfloat16> : affine<8, bfloat16>)(
      *a, (const bfloat16*)x, (const bfloat16*)residual, (bfloat16*)out, rows, signs, images,
      pixels, channels);
}

// out = act(scale * norm(x) + shift), the norm over each row of features; an image has some rows.
void layer_norm_float(const After* a, const float* x, float* out, const int64_t* rows,
                      const float* signs, int64_t images, int64_t rows_each, int32_t features,
                      float eps) {
  layer_norm<16, float>(*a, x, out, rows, signs, images, rows_each, features, eps);
}
void layer_norm_bfloat16(const After* a, const void* x, void* out, const int64_t* rows,
                         const float* signs, int64_t images, int64_t rows_each,
                         int32_t features, float eps) {
  layer_norm<16, bfloat16>(*a, (const bfloat16*)x, (bfloat16*)out, rows, signs, images,
                           rows_each, features, eps);
}

// Whether `convolve_bfloat16` does this layer on this processor.
int32_t convolves(const Layer* l) {
#if defined(__AVX512BF16__) && defined(__AVX512VL__)
  return convolution_for(*l) != nullptr;
#else
  (void)l;
  return 0;
#endif
}

// out = act(conv(x, weights) + shift + residual + what each image's member adds).
void convolve_bfloat16(const Layer* l, const After* a, const void* weights, const float* shift,
                       const void* x, const void* residual, void* out, const int64_t* rows,
                       const float* signs, int64_t images) {
#if defined(__AVX512BF16__) && defined(__AVX512VL__)
  convolution_for(*l)(*l, Fused{(const bfloat16*)weights, shift}, *a, (const bfloat16*)x,
                      (const bfloat16*)residual, (bfloat16*)out, rows, signs, images);
#else
  (void)l, (void)a, (void)weights, (void)shift, (void)x, (void)residual, (void)out;
  (void)rows, (void)signs, (void)images;
#endif
}

// out[o, tap, c] = weight[o, c, tap] * scale[o]: folded, and channels-last.
void fold_float(const float* weight, const float* scale, float* out, int64_t outputs,
                int64_t channels, int64_t taps) {
  fold(weight, scale, out, outputs, channels, taps);
}
void fold_bfloat16(const float* weight, const float* scale, void* out, int64_t outputs,
                   int64_t channels, int64_t taps) {
  fold(weight, scale, (bfloat16*)out, outputs, channels, taps);
}

// Some columns of some products of noise: see sums.h. Each has three numbers: which one, from, to.
void add_parts(const Product* products, const float* weights, const int64_t* parts, int64_t count) {
  add_columns_of(products, weights, parts, count);
}

// Philox4x64-10 (Salmon et al. 2011) for one counter.
static inline void philox(uint64_t c0, uint64_t c1, uint64_t k0, uint64_t k1, uint64_t* words) {
  uint64_t c2 = 0, c3 = 0;
  for (int round = 0; round < 10; ++round) {
    const unsigned __int128 p = (unsigned __int128)0xD2E7470EE14C6C93ull * c0;
    const unsigned __int128 q = (unsigned __int128)0xCA5A826395121157ull * c2;
    const uint64_t n0 = uint64_t(q >> 64) ^ c1 ^ k0, n2 = uint64_t(p >> 64) ^ c3 ^ k1;
    c1 = uint64_t(q);
    c3 = uint64_t(p);
    c0 = n0;
    c2 = n2;
    k0 += 0x9E3779B97F4A7C15ull;
    k1 += 0xBB67AE8584CAA73Bull;
  }
  words[0] = c0, words[1] = c1, words[2] = c2, words[3] = c3;
}

// Stretch by stretch: `blocks` blocks of four words, each word four normals, to where `outs` says.
// A stretch's key is (seed, key); the counter is (first, generation, 0, 0) and counts up before a
// block is made, as numpy's.
void normals(int64_t stretches, uint64_t seed, const uint64_t* keys, const uint64_t* firsts,
             uint64_t generation, const uint64_t* blocks, const float* quantiles,
             float* const* outs) {
  uint64_t words[4];
  for (int64_t s = 0; s < stretches; ++s) {
    float* out = outs[s];
    for (uint64_t b = 0; b < blocks[s]; ++b) {
      philox(firsts[s] + b + 1, generation, seed, keys[s], words);
      for (int w = 0; w < 4; ++w)
        for (int h = 0; h < 4; ++h) *out++ = quantiles[(words[w] >> (16 * h)) & 0xffff];
    }
  }
}

// One stretch, and every bit a sign, the lowest first: +1 or -1 as bfloat16.
void signs(uint64_t seed, uint64_t key, uint64_t first, uint64_t generation, uint64_t blocks,
           uint16_t* out) {
  uint64_t words[4];
  for (uint64_t b = 0; b < blocks; ++b) {
    philox(first + b + 1, generation, seed, key, words);
    for (int w = 0; w < 4; ++w, out += 64)
      for (int bit = 0; bit < 64; ++bit)
        out[bit] = uint16_t(0x3F80 | ((words[w] >> bit & 1) << 15));
  }
}

}  // extern "C"
