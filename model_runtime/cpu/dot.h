// The micro kernel of everything here: a few rows times 64 columns in registers, two bfloat16 at a time.
// Columns are packed in tiles of 16: [tiles][pairs][16][2], so that one load brings a pair of each of 16 columns.
#pragma once
#include "common.h"

constexpr int ROWS = 6, TILES = 4;

// out[r][0..63] (+)= sum over pairs of a[r][pair] . b[pair][column]; tile c of `b` stands at b + c * tile_stride.
template <int R, bool ADD>
inline void dot_tile(const uint32_t* const* a, const bf16* b, long pair_stride, long tile_stride, int pairs, float* out,
                     int out_stride) {
    __m512 acc[R][TILES];
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int c = 0; c < TILES; c++)
            acc[r][c] = ADD ? _mm512_loadu_ps(out + r * out_stride + 16 * c) : _mm512_setzero_ps();
    for (int p = 0; p < pairs; p++) {
        __m512bh col[TILES];
        UNROLL for (int c = 0; c < TILES; c++) col[c] = as_bf16(_mm512_loadu_si512(b + p * pair_stride + c * tile_stride));
        UNROLL for (int r = 0; r < R; r++) {
            const __m512bh row = two_bf16(a[r][p]);
            UNROLL for (int c = 0; c < TILES; c++) add_dot(acc[r][c], row, col[c]);
        }
    }
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int c = 0; c < TILES; c++) _mm512_storeu_ps(out + r * out_stride + 16 * c, acc[r][c]);
}

template <bool ADD>
inline void dot_rows(int rows, const uint32_t* const* a, const bf16* b, long pair_stride, long tile_stride, int pairs,
                     float* out, int out_stride) {
    switch (rows) {
        case 1: return dot_tile<1, ADD>(a, b, pair_stride, tile_stride, pairs, out, out_stride);
        case 2: return dot_tile<2, ADD>(a, b, pair_stride, tile_stride, pairs, out, out_stride);
        case 3: return dot_tile<3, ADD>(a, b, pair_stride, tile_stride, pairs, out, out_stride);
        case 4: return dot_tile<4, ADD>(a, b, pair_stride, tile_stride, pairs, out, out_stride);
        case 5: return dot_tile<5, ADD>(a, b, pair_stride, tile_stride, pairs, out, out_stride);
        default: return dot_tile<6, ADD>(a, b, pair_stride, tile_stride, pairs, out, out_stride);
    }
}
