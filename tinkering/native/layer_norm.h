// Rows of features, each with mean 0 and variance 1, and then what stands behind.

#pragma once

#include <cmath>

#include "after.h"
#include "vectors.h"

namespace {

// Of a row's distances from a number, or of their squares.
template <int V, typename T>
inline float sum_of(const T* row, int features, float mean, bool squares) {
  typename Lanes<V>::F sum = {};
  int i = 0;
  for (; i + V <= features; i += V) {
    const auto value = load<V>(row + i) - mean;
    sum += squares ? value * value : value;
  }
  for (int width = V / 2; width; width /= 2)
    for (int v = 0; v < width; ++v) sum[v] += sum[v + width];
  float total = sum[0];
  for (; i < features; ++i) {
    const float value = widen(row[i]) - mean;
    total += squares ? value * value : value;
  }
  return total;
}

// Each image has `rows_each` rows, one after the other.
template <int V, typename T>
void layer_norm(const After& a, const T* x, T* out, const int64_t* rows, const float* signs,
                int64_t images, int64_t rows_each, int features, float eps) {
  static thread_local Own own;
  const Activation<V> act(a);
  for (int64_t n = 0; n < images; ++n) {
    own.gather(a, features, rows[n], signs[n]);
    for (int64_t r = 0; r < rows_each; ++r, x += features, out += features) {
      const float mean = sum_of<V>(x, features, 0.0f, false) / features;
      const float variance = sum_of<V>(x, features, mean, true) / features;
      const float inverse = 1.0f / std::sqrt(variance + eps);
      for (int i = 0; i < features; i += V) {
        const int lanes = features - i < V ? features - i : V;
        auto value = lanes == V ? load<V>(x + i) : load_some<V>(x + i, lanes);
        value = (value - mean) * inverse * load<V>(&own.scale[i]) + load<V>(&own.shift[i]);
        value = act(value);
        if (lanes == V) store<V>(out + i, value);
        else store_some<V>(out + i, value, lanes);
      }
    }
  }
}

}  // namespace
