// The micro kernel in 8 bits: a few rows times 64 columns in registers, four products at a time (VNNI).
// Columns are packed in tiles of 16: [tiles][quads][16][4].
#pragma once
#include "dot.h"

// sums[r][0..63] over quads of a[r] (unsigned) times packed columns (signed).
template <int R>
inline void dot8_tile(const uint8_t* a, long a_stride, const int8_t* w, long tile_stride, int quads, __m512i (*sums)[TILES]) {
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int c = 0; c < TILES; c++) sums[r][c] = _mm512_setzero_si512();
    for (int p = 0; p < quads; p++) {
        __m512i col[TILES];
        UNROLL for (int c = 0; c < TILES; c++) col[c] = _mm512_loadu_si512(w + p * 64 + c * tile_stride);
        UNROLL for (int r = 0; r < R; r++) {
            int32_t quad;
            memcpy(&quad, a + r * a_stride + 4 * p, 4);
            const __m512i row = _mm512_set1_epi32(quad);
            UNROLL for (int c = 0; c < TILES; c++) sums[r][c] = _mm512_dpbusd_epi32(sums[r][c], row, col[c]);
        }
    }
}
