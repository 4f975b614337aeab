// Convolutions of every channel on its own, with each member's own weights.
//
// Those are so few that a member's are made on the way: the convolution costs what the centre's
// alone would, in one pass over the image.

#pragma once

#include <vector>

#include "after.h"
#include "layer.h"
#include "vectors.h"

namespace {

// A block of V channels of one image, with zeros around it, in float.
template <int V> struct Padded {
  typedef typename Lanes<V>::F F;
  std::vector<F> pixels;
  int across = 0, rows = 0;  // how many are filled, those above the image among them

  explicit Padded(const Layer& l) : across(l.width + 2 * l.pad_width) {
    pixels.assign(int64_t(l.height + 2 * l.pad_height) * across, F{});
  }
  template <typename T> void fill(const Layer& l, const T* x, int upto, int lanes) {
    for (; rows < upto; ++rows) {
      const int y = rows - l.pad_height;
      if (y < 0 || y >= l.height) continue;
      F* to = &pixels[int64_t(rows) * across + l.pad_width];
      const T* from = x + int64_t(y) * l.width * l.groups;
      if (lanes == V)
        for (int i = 0; i < l.width; ++i) to[i] = load<V>(from + int64_t(i) * l.groups);
      else
        for (int i = 0; i < l.width; ++i) to[i] = load_some<V>(from + int64_t(i) * l.groups, lanes);
    }
  }
};

// P pixels of a row, which share what they read: K x K taps, S pixels from one to the next.
template <int V, int K, int S, int P>
inline __attribute__((always_inline)) void convolve_pixels(const typename Lanes<V>::F* from,
                                                           int across,
                                                           const typename Lanes<V>::F* taps,
                                                           typename Lanes<V>::F* sums) {
  typedef typename Lanes<V>::F F;
  for (int ky = 0; ky < K; ++ky, from += across, taps += K) {
    F tap[K];
#pragma GCC unroll 8
    for (int k = 0; k < K; ++k) tap[k] = taps[k];
#pragma GCC unroll 32
    for (int column = 0; column < (P - 1) * S + K; ++column) {
      const F value = from[column];
#pragma GCC unroll 8
      for (int p = 0; p < P; ++p)
        if (column >= p * S && column - p * S < K) sums[p] += value * tap[column - p * S];
    }
  }
}

// P pixels of a row, for any kernel.
template <int V, int P>
inline __attribute__((always_inline)) void convolve_any(const Layer& l,
                                                        const typename Lanes<V>::F* from,
                                                        int across,
                                                        const typename Lanes<V>::F* taps,
                                                        typename Lanes<V>::F* sums) {
  for (int ky = 0; ky < l.kernel_height; ++ky)
    for (int kx = 0; kx < l.kernel_width; ++kx, ++taps) {
      const typename Lanes<V>::F* at =
          from + int64_t(ky) * l.dilation_height * across + kx * l.dilation_width;
      for (int p = 0; p < P; ++p) sums[p] += at[int64_t(p) * l.stride_width] * *taps;
    }
}

// Where a row of the result is written, and what is added to it; pixels are `step` apart.
template <typename T> struct Row {
  const T* residual;
  T* out;
  int step, lanes;
};

template <int V, int P, typename T>
inline __attribute__((always_inline)) void finish_pixels(const Row<T>& row,
                                                         const Activation<V>& act,
                                                         typename Lanes<V>::F* sums, int64_t at) {
  if (row.lanes == V) {
    if (row.residual)
#pragma GCC unroll 8
      for (int p = 0; p < P; ++p) sums[p] += load<V>(row.residual + at + int64_t(p) * row.step);
    if (act.curve == CLAMP)
#pragma GCC unroll 8
      for (int p = 0; p < P; ++p)
        store<V>(row.out + at + int64_t(p) * row.step, act.clamped(sums[p]));
    else
      for (int p = 0; p < P; ++p) store<V>(row.out + at + int64_t(p) * row.step, act(sums[p]));
    return;
  }
  for (int p = 0; p < P; ++p, at += row.step) {
    if (row.residual) sums[p] += load_some<V>(row.residual + at, row.lanes);
    store_some<V>(row.out + at, act(sums[p]), row.lanes);
  }
}

template <int V, int K, int S, int P, typename T>
inline int convolve_row(const Layer& l, const Activation<V>& act, const typename Lanes<V>::F* from,
                        int across, const typename Lanes<V>::F* taps,
                        typename Lanes<V>::F base, const Row<T>& row, int i) {
  typedef typename Lanes<V>::F F;
  for (; i + P <= l.out_width; i += P) {
    F sums[P];
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) sums[p] = base;
    const F* at = from + int64_t(i) * (K ? S : l.stride_width);
    if constexpr (K != 0)
      convolve_pixels<V, K, S, P>(at, across, taps, sums);
    else
      convolve_any<V, P>(l, at, across, taps, sums);
    finish_pixels<V, P>(row, act, sums, int64_t(i) * row.step);
  }
  return i;
}

// The member's taps of a block of channels, and last what is added to every pixel.
template <int V>
void gather_block(const Layer& l, const float* weights, const float* shift, const Own& own,
                  int64_t pair, float sign, int first, int lanes, typename Lanes<V>::F* to) {
  typedef typename Lanes<V>::F F;
  const int channels = l.groups, taps = l.kernel_height * l.kernel_width;
  auto read = [&](const float* from) {
    return lanes == V ? load<V>(from + first) : load_some<V>(from + first, lanes);
  };
  const F scale = load<V>(&own.scale[first]);
  const F amount = l.left ? read(l.scale) * sign : F{};
  const float* noise = l.left ? l.left + pair * l.left_stride : nullptr;
  for (int k = 0; k < taps; ++k) {
    F tap = read(weights + int64_t(k) * channels);
    if (noise) tap += read(noise + int64_t(k) * channels) * amount;
    to[k] = tap * scale;
  }
  F base = read(shift);
  if (l.shift_noise)
    base += read(l.shift_noise + pair * l.shift_stride) * read(l.shift_scale) * sign;
  to[taps] = base * scale + load<V>(&own.shift[first]);
}

template <int V, int K, int S, typename T>
void depthwise(const Layer& l, const After& a, const float* weights, const float* shift,
               const T* x, const T* residual, T* out, const int64_t* rows, const float* signs,
               int64_t images) {
  typedef typename Lanes<V>::F F;
  const int channels = l.groups, count = l.kernel_height * l.kernel_width;
  const int reach = (l.kernel_height - 1) * l.dilation_height + 1;
  const int64_t in = int64_t(l.height) * l.width * channels;
  const int64_t result = int64_t(l.out_height) * l.out_width * channels;
  static thread_local Own own;
  const Activation<V> act(a);
  std::vector<F> taps(count + 1);
  Padded<V> padded(l);
  for (int64_t n = 0; n < images; ++n) {
    own.gather(a, channels, rows[n], signs[n]);
    for (int first = 0; first < channels; first += V) {
      const int lanes = channels - first < V ? channels - first : V;
      gather_block<V>(l, weights, shift, own, rows[n], signs[n], first, lanes, taps.data());
      padded.rows = 0;
      for (int y = 0; y < l.out_height; ++y) {
        padded.fill(l, x + n * in + first, y * l.stride_height + reach, lanes);
        const F* from = &padded.pixels[int64_t(y) * l.stride_height * padded.across];
        const int64_t at = n * result + int64_t(y) * l.out_width * channels + first;
        const Row<T> row{residual ? residual + at : nullptr, out + at, channels, lanes};
        int i = convolve_row<V, K, S, 8>(l, act, from, padded.across, taps.data(), taps[count],
                                         row, 0);
        i = convolve_row<V, K, S, 4>(l, act, from, padded.across, taps.data(), taps[count], row, i);
        convolve_row<V, K, S, 1>(l, act, from, padded.across, taps.data(), taps[count], row, i);
      }
    }
  }
}

template <int V, typename T>
void depthwise(const Layer& l, const After& a, const float* weights, const float* shift,
               const T* x, const T* residual, T* out, const int64_t* rows, const float* signs,
               int64_t images) {
  const bool even = l.kernel_height == l.kernel_width && l.stride_height == l.stride_width &&
                    l.dilation_height * l.dilation_width == 1;
  const int kind = even && l.stride_width <= 2 ? 10 * l.kernel_width + l.stride_width : 0;
  auto run = depthwise<V, 0, 0, T>;
  switch (kind) {
    case 31: run = depthwise<V, 3, 1, T>; break;
    case 32: run = depthwise<V, 3, 2, T>; break;
    case 51: run = depthwise<V, 5, 1, T>; break;
    case 52: run = depthwise<V, 5, 2, T>; break;
    case 71: run = depthwise<V, 7, 1, T>; break;
    default: break;
  }
  run(l, a, weights, shift, x, residual, out, rows, signs, images);
}

}  // namespace
