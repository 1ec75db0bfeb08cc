// The micro kernel in 8 bits: a few rows times 64 columns in registers, four products at a time (VNNI).
// Columns are packed in tiles of 16: [tiles][quads][16][4].
#pragma once
#include "dot.h"

// out[r][0..63] = a[r] (unsigned) . w (signed), less the columns' offsets, times both scales.
template <int R>
inline void dot8_tile(const uint8_t* a, const float* a_scale, const int8_t* w, const float* w_scale,
                      const int32_t* offset, int K, float* out) {
    __m512i acc[R][TILES];
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int c = 0; c < TILES; c++) acc[r][c] = _mm512_setzero_si512();
    for (int p = 0; p < K / 4; p++) {
        __m512i col[TILES];
        UNROLL for (int c = 0; c < TILES; c++) col[c] = _mm512_loadu_si512(w + p * 64 + c * 16L * K);
        UNROLL for (int r = 0; r < R; r++) {
            int32_t quad;
            memcpy(&quad, a + r * (long)K + 4 * p, 4);
            const __m512i row = _mm512_set1_epi32(quad);
            UNROLL for (int c = 0; c < TILES; c++) add_dot(acc[r][c], row, col[c]);
        }
    }
    UNROLL for (int c = 0; c < TILES; c++) {
        const __m512i shift = _mm512_loadu_si512(offset + 16 * c);
        const __m512 scale = _mm512_loadu_ps(w_scale + 16 * c);
        UNROLL for (int r = 0; r < R; r++) {
            const __m512 exact = _mm512_cvtepi32_ps(_mm512_sub_epi32(acc[r][c], shift));
            _mm512_store_ps(out + r * 64 + 16 * c, _mm512_mul_ps(_mm512_mul_ps(exact, _mm512_set1_ps(a_scale[r])), scale));
        }
    }
}
