// Weighted sums of outer products: those of members' noise, of which an estimate of a gradient is
// made.

#pragma once

#include <algorithm>

#include "vectors.h"

extern "C" {

// total[line, column] += sum_r weights[r / rank] * right[r, line] * left[r, column]. Where there are
// taps, a line stands for an input and a tap, and the two are multiplied; where there is no right,
// for ones.
struct Product {
  const float *left, *right, *taps;
  float* total;
  int64_t left_step, right_step, taps_step;  // floats from row to row
  int64_t rows, rank, lines, columns;
  int64_t of_taps;  // how many
};

}  // extern "C"

namespace {

#ifdef __AVX512F__
constexpr int kWide = 16, kLines = 8;  // with three vectors of columns: 24 sums of 32 registers
#else
constexpr int kWide = 8, kLines = 4;  // 12 of 16
#endif
constexpr int kPanel = 3;
constexpr int kRows = 128;  // at a time: their columns stay in cache while all lines are done
constexpr int kAhead = 8;  // rows from which memory is fetched beforehand

typedef Lanes<kWide>::F Wide;

// Adds the products of some rows to `lines` of L lines and C vectors of columns. Each sum goes
// through the rows in their order, so it does not depend on what is summed beside it.
template <int L, int C>
void add_tile(const float* right, const float* left, int64_t step, int rows, float* total,
              int64_t columns, int lines) {
  Wide sum[L][C] = {};
  for (int r = 0; r < rows; ++r, left += step, right += L) {
    Wide row[C];
    for (int c = 0; c < C; ++c) {
      row[c] = load<kWide>(left + c * kWide);
      __builtin_prefetch(left + kAhead * step + c * kWide);
    }
    for (int i = 0; i < L; ++i)
      for (int c = 0; c < C; ++c) sum[i][c] += row[c] * right[i];
  }
  for (int i = 0; i < lines; ++i)
    for (int c = 0; c < C; ++c) {
      float* to = total + i * columns + c * kWide;
      store<kWide>(to, load<kWide>(to) + sum[i][c]);
    }
}

// The same for fewer columns than a vector has.
template <int L>
void add_rest(const float* right, const float* left, int64_t step, int rows, float* total,
              int64_t columns, int lines, int some) {
  float padded[kRows * kWide] = {}, sums[L * kWide] = {};
  for (int r = 0; r < rows; ++r) std::copy_n(left + r * step, some, padded + r * kWide);
  add_tile<L, 1>(right, padded, kWide, rows, sums, kWide, L);
  for (int i = 0; i < lines; ++i)
    for (int c = 0; c < some; ++c) total[i * columns + c] += sums[i * kWide + c];
}

template <int L>
void add_columns(const float* right, const float* left, int64_t step, int rows, float* total,
                 int64_t columns, int lines, int64_t count) {
  while (count >= kWide) {
    const int64_t vectors = count / kWide;
    const int some = vectors == kPanel + 1 ? 2 : int(std::min<int64_t>(vectors, kPanel));
    const auto add = some == kPanel ? add_tile<L, kPanel> : some == 2 ? add_tile<L, 2> : add_tile<L, 1>;
    add(right, left, step, rows, total, columns, lines);
    left += some * kWide, total += some * kWide, count -= some * kWide;
  }
  if (count) add_rest<L>(right, left, step, rows, total, columns, lines, int(count));
}

// What some rows multiply L lines by, of which the last ones may be missing.
template <int L>
void weigh(const Product& p, const float* weights, int64_t first, int rows, int64_t line, int lines,
           float* out) {
  int64_t input[L], tap[L];
  for (int i = 0; i < L; ++i) {
    const int64_t at = line + std::min(i, lines - 1);
    input[i] = at / p.of_taps, tap[i] = at % p.of_taps;
  }
  for (int r = 0; r < rows; ++r, out += L) {
    const int64_t row = first + r;
    const float weight = weights[row / p.rank];
    const float* right = p.right + row * p.right_step;
    const float* taps = p.taps + row * p.taps_step;
    if (!p.right)
      for (int i = 0; i < L; ++i) out[i] = weight;
    else if (p.taps)
      for (int i = 0; i < L; ++i) out[i] = weight * right[input[i]] * taps[tap[i]];
    else if (lines == L)
      for (int i = 0; i < L; ++i) out[i] = weight * right[line + i];
    else
      for (int i = 0; i < L; ++i) out[i] = weight * right[input[i]];
  }
}

template <int L>
void add_product(const Product& p, const float* weights, int64_t first, int64_t last) {
  float right[kRows * L];
  for (int64_t row = 0; row < p.rows; row += kRows) {
    const int rows = int(std::min<int64_t>(kRows, p.rows - row));
    for (int64_t line = 0; line < p.lines; line += L) {
      const int lines = int(std::min<int64_t>(L, p.lines - line));
      weigh<L>(p, weights, row, rows, line, lines, right);
      add_columns<L>(right, p.left + row * p.left_step + first, p.left_step, rows,
                     p.total + line * p.columns + first, p.columns, lines, last - first);
    }
  }
}

// Some columns of some products, each of which has three numbers: which one, from, to.
void add_columns_of(const Product* products, const float* weights, const int64_t* parts,
                    int64_t count) {
  for (; count; --count, parts += 3) {
    const Product& p = products[parts[0]];
    if (p.lines == 1)
      add_product<1>(p, weights, parts[1], parts[2]);
    else
      add_product<kLines>(p, weights, parts[1], parts[2]);
  }
}

}  // namespace
