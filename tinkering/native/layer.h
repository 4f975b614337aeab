// A layer and the noise of its parameters, as the kernels are told of it.

#pragma once

#include <cstdint>

extern "C" {

// One layer of a captured network, and the noise of its parameters.
struct Layer {
  int32_t channels, outputs;   // of a group
  int32_t groups;
  int32_t height, width, out_height, out_width;
  int32_t kernel_height, kernel_width, stride_height, stride_width;
  int32_t pad_height, pad_width, dilation_height, dilation_width;
  int32_t rank;              // planes: mixtures of channels, or the channels themselves
  int32_t separable;         // left is [pair][rank, all outputs], and taps there
  const float* left;         // [pair][rank, kernel, all outputs], or null: the weight has no noise
  const float* right;        // [pair][rank, channels]; null: planes are the channels
  const float* taps;         // [pair][rank, kernel], or null
  const float* scale;        // [all outputs], multiplies left
  const float* shift_noise;  // [pair][all outputs] or null
  const float* shift_scale;  // [all outputs], multiplies shift_noise
  int64_t left_stride, right_stride, taps_stride, shift_stride;  // floats from pair to pair

  int pixel() const { return channels * groups; }       // numbers of a pixel of the input
  int out_pixel() const { return outputs * groups; }    // of a pixel of the result
};

}  // extern "C"
