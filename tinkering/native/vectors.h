// Vectors of the compiler's own, so that any processor will do, of float or of bfloat16 (its upper
// half) in memory; sums over them.

#pragma once

#include <cstdint>
#include <cstring>
#include <vector>
#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

namespace {

template <int V> struct Lanes;
template <> struct Lanes<16> {
  typedef float F __attribute__((vector_size(64)));
  typedef uint32_t U __attribute__((vector_size(64)));
  typedef uint16_t H __attribute__((vector_size(32)));
};
template <> struct Lanes<8> {
  typedef float F __attribute__((vector_size(32)));
  typedef uint32_t U __attribute__((vector_size(32)));
  typedef uint16_t H __attribute__((vector_size(16)));
};

struct bfloat16 { uint16_t bits; };

inline float widen(float value) { return value; }
inline float widen(bfloat16 value) {
  uint32_t bits = uint32_t(value.bits) << 16;
  float result;
  std::memcpy(&result, &bits, 4);
  return result;
}

template <int V> inline typename Lanes<V>::F load(const float* from) {
  typename Lanes<V>::F value;
  std::memcpy(&value, from, sizeof value);
  return value;
}
template <int V> inline typename Lanes<V>::F load(const bfloat16* from) {
  typename Lanes<V>::H half;
  std::memcpy(&half, from, sizeof half);
  typename Lanes<V>::U bits = __builtin_convertvector(half, typename Lanes<V>::U) << 16;
  return (typename Lanes<V>::F)bits;
}
template <int V> inline void store(float* to, typename Lanes<V>::F value) {
  std::memcpy(to, &value, sizeof value);
}
template <int V> inline void store(bfloat16* to, typename Lanes<V>::F value) {
#if defined(__AVX512BF16__) && defined(__AVX512VL__)
  if constexpr (V == 16) {
    const __m256bh half = _mm512_cvtneps_pbh((__m512)value);
    std::memcpy(to, &half, sizeof half);
  } else {
    const __m128bh half = _mm256_cvtneps_pbh((__m256)value);
    std::memcpy(to, &half, sizeof half);
  }
  return;
#endif
  typedef typename Lanes<V>::U U;
  U bits = (U)value;
  U rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;  // to nearest, ties to even
  U nan = (U)(value != value);                             // rounding could make it infinite
  rounded = (nan & 0x7fc0) | (~nan & rounded);
  typename Lanes<V>::H half = __builtin_convertvector(rounded, typename Lanes<V>::H);
  std::memcpy(to, &half, sizeof half);
}
template <int V, typename T> inline typename Lanes<V>::F load_some(const T* from, int count) {
  T padded[V] = {};
  std::memcpy(padded, from, count * sizeof(T));
  return load<V>(padded);
}
template <int V, typename T>
inline void store_some(T* to, typename Lanes<V>::F value, int count) {
  T padded[V];
  store<V>(padded, value);
  std::memcpy(to, padded, count * sizeof(T));
}
// Sums of neighbours: [a0+a1, a2+a3, ..., b0+b1, ...].
inline Lanes<16>::F neighbours(Lanes<16>::F a, Lanes<16>::F b) {
  return __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30) +
         __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
}
inline Lanes<8>::F neighbours(Lanes<8>::F a, Lanes<8>::F b) {
  return __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14) +
         __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15);
}

// sums[p] = sum_c x[p * step + c] * right[c] for V pixels, whose channels are a multiple of V.
template <int V, typename T>
inline typename Lanes<V>::F dots(const T* x, const float* right, int channels, int64_t step) {
  typename Lanes<V>::F sum[V];
  typename Lanes<V>::F factor = load<V>(right);
  for (int p = 0; p < V; ++p) sum[p] = load<V>(x + p * step) * factor;
  for (int c = V; c < channels; c += V) {
    factor = load<V>(right + c);
    for (int p = 0; p < V; ++p) sum[p] += load<V>(x + p * step + c) * factor;
  }
  for (int width = V; width > 1; width /= 2)
    for (int p = 0; p < width / 2; ++p) sum[p] = neighbours(sum[2 * p], sum[2 * p + 1]);
  return sum[0];
}

template <int V, typename T> float dot(const T* x, const float* right, int channels) {
  typename Lanes<V>::F sum = {};
  int c = 0;
  for (; c + V <= channels; c += V) sum += load<V>(x + c) * load<V>(right + c);
  for (int width = V / 2; width; width /= 2)  // halves onto halves: no long chain of additions
    for (int v = 0; v < width; ++v) sum[v] += sum[v + width];
  float total = sum[0];
  for (; c < channels; ++c) total += widen(x[c]) * right[c];
  return total;
}

}  // namespace
