// What stands behind a layer: a member's own scale and shift, and a function of every number.

#pragma once

#include <cstdint>
#include <vector>

#include "vectors.h"

extern "C" {

struct After {
  const float* scale;        // [channels] or null: 1
  const float* scale_noise;  // [pair][channels] or null
  const float* shift;        // [channels] or null: 0
  const float* shift_noise;  // [pair][channels] or null
  int64_t scale_stride, shift_stride;  // floats from pair to pair
  float sigma;                         // multiplies the noise
  int32_t curve;                       // as `Curve` has them
  float low, high;                     // of a clamp
};

}  // extern "C"

namespace {

enum Curve { CLAMP, SILU, GELU, GELU_TANH, HARDSWISH, TANH, SIGMOID };

// Below what a float can hold the result is that of the nearest such number, above it infinity.
template <int V> inline typename Lanes<V>::F exponential(typename Lanes<V>::F x) {
  typedef typename Lanes<V>::F F;
  typedef typename Lanes<V>::U U;
  const auto beyond = x > 88.0f;
  x = x < -87.0f ? F{} - 87.0f : x;  // a NaN stays one
  x = beyond ? F{} + 88.0f : x;
  const F shifted = x * 1.44269504f + 12582912.0f;  // its last bits are the whole power of two
  const F power = shifted - 12582912.0f;
  const F rest = (x - power * 0.693359375f) + power * 2.12194440e-4f;
  F sum = rest * 1.9875691500e-4f + 1.3981999507e-3f;  // Cephes' expf
  sum = sum * rest + 8.3334519073e-3f;
  sum = sum * rest + 4.1665795894e-2f;
  sum = sum * rest + 1.6666665459e-1f;
  sum = sum * rest + 5.0000001201e-1f;
  sum = sum * (rest * rest) + rest + 1.0f;
  const F result = (F)((U)sum + ((U)shifted << 23));
  return beyond ? F{} + __builtin_inff() : result;
}

// Abramowitz and Stegun, "Handbook of Mathematical Functions", 7.1.26.
template <int V> inline typename Lanes<V>::F gelu(typename Lanes<V>::F x) {
  typedef typename Lanes<V>::F F;
  const F size = x < 0.0f ? -x : x;
  const F t = 1.0f / (size * (0.3275911f * 0.707106781f) + 1.0f);
  F tail = t * 1.061405429f - 1.453152027f;
  tail = tail * t + 1.421413741f;
  tail = tail * t - 0.284496736f;
  tail = tail * t + 0.254829592f;
  tail = tail * t * exponential<V>(x * x * -0.5f);  // 1 - erf(|x| / sqrt(2))
  return x * 0.5f * (x < 0.0f ? tail : 2.0f - tail);
}

// Near 0 a polynomial, of Cephes' tanhf, which keeps the digits of what is small.
template <int V> inline typename Lanes<V>::F tangent(typename Lanes<V>::F x) {
  typedef typename Lanes<V>::F F;
  const F square = x * x;
  F near = square * -5.70498872745e-3f + 2.06390887954e-2f;
  near = near * square - 5.37397155531e-2f;
  near = near * square + 1.33314422036e-1f;
  near = near * square - 3.33332819422e-1f;
  near = near * square * x + x;
  const F far = 1.0f - 2.0f / (exponential<V>(x + x) + 1.0f);
  return square < 0.390625f ? near : far;  // a NaN is in both
}

template <int V>
__attribute__((noinline)) typename Lanes<V>::F curved(typename Lanes<V>::F x, int curve) {
  switch (curve) {
    case SILU: return x / (exponential<V>(-x) + 1.0f);
    case GELU: return gelu<V>(x);
    case GELU_TANH:
      return x / (exponential<V>(x * (x * x * 0.044715f + 1.0f) * -1.59576912f) + 1.0f);
    case TANH: return tangent<V>(x);
    case SIGMOID: return 1.0f / (exponential<V>(-x) + 1.0f);
    default: {
      typename Lanes<V>::F part = x + 3.0f;
      part = part < 0.0f ? decltype(part){} : part;
      part = part > 6.0f ? decltype(part){} + 6.0f : part;
      return x * part * (1.0f / 6.0f);
    }
  }
}

// A function of every number, held where no store can be thought to change it.
template <int V> struct Activation {
  typedef typename Lanes<V>::F F;
  F low, high;
  int curve;

  explicit Activation(const After& a) : low(F{} + a.low), high(F{} + a.high), curve(a.curve) {}

  F clamped(F x) const {
    x = x < low ? low : x;  // a NaN stays one
    return x > high ? high : x;
  }
  F operator()(F x) const { return curve == CLAMP ? clamped(x) : curved<V>(x, curve); }
};

// The member's own scale and shift of every channel, with room for whole vectors.
struct Own {
  std::vector<float> scale, shift;

  void gather(const After& a, int channels, int64_t pair, float sign) {
    const float amount = a.sigma * sign;
    scale.assign(channels + 16, 1.0f);
    shift.assign(channels + 16, 0.0f);
    for (int c = 0; a.scale && c < channels; ++c) scale[c] = a.scale[c];
    for (int c = 0; a.shift && c < channels; ++c) shift[c] = a.shift[c];
    if (const float* noise = a.scale_noise ? a.scale_noise + pair * a.scale_stride : nullptr)
      for (int c = 0; c < channels; ++c) scale[c] += noise[c] * amount;
    if (const float* noise = a.shift_noise ? a.shift_noise + pair * a.shift_stride : nullptr)
      for (int c = 0; c < channels; ++c) shift[c] += noise[c] * amount;
  }
};

}  // namespace
