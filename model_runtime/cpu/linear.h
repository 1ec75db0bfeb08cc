// What linear layers in 16 and in 8 bits share: how a product is cut into tiles, and what follows a sum on its way out.
#pragma once
#include <algorithm>
#include <type_traits>

#include "dot.h"

enum Then { NOTHING = 0, GELU_TANH = 1, TIMES = 2 };

// x sigmoid(2 sqrt(2/pi) (x + 0.044715 x^3)), which is the tanh approximation of GELU.
static inline __m512 gelu(__m512 x) {
    const __m512 cube = _mm512_mul_ps(_mm512_mul_ps(x, x), x);
    const __m512 u = _mm512_mul_ps(_mm512_fmadd_ps(cube, _mm512_set1_ps(0.044715f), x), _mm512_set1_ps(-1.5957691216f));
    return _mm512_div_ps(x, _mm512_add_ps(_mm512_set1_ps(1.0f), exp16(u)));
}

// Where sums go, as bfloat16 [T, N], N a multiple of 16.
struct Out {
    const float* bias;  // or null
    const bf16* other;  // or null
    bf16* out;
    long N;
    int then;

    // Sums [R][64] of the columns from `column` on.
    template <int R>
    inline void put(const float* sums, long row, long column) const {
        for (int r = 0; r < R; r++)
            for (long n = column; n < std::min(N, column + 64); n += 16) {
                __m512 y = _mm512_load_ps(sums + r * 64 + n - column);
                const long at = (row + r) * N + n;
                if (bias) y = _mm512_add_ps(y, _mm512_loadu_ps(bias + n));
                if (then == GELU_TANH) y = gelu(y);
                if (then == TIMES) y = _mm512_mul_ps(y, load16(other + at));
                store16(out + at, y);
            }
    }
};

// Calls f with the number of rows as a constant.
template <class F>
static inline void with_rows(long rows, const F& f) {
    switch (rows) {
        case 1: return f(std::integral_constant<int, 1>());
        case 2: return f(std::integral_constant<int, 2>());
        case 3: return f(std::integral_constant<int, 3>());
        case 4: return f(std::integral_constant<int, 4>());
        case 5: return f(std::integral_constant<int, 5>());
        default: return f(std::integral_constant<int, 6>());
    }
}

// tile(rows as a constant, first row, first column) for all of [T, N]; 64 columns each. Rows that stay in the cache with
// a panel of weights go together, and whichever core is free takes the next: one may be lent to somebody else.
template <class Tile>
static void over_tiles(long T, long N, const Tile& tile) {
    constexpr long BLOCK_ROWS = 96;
    const long panels = (N + 63) / 64, blocks = (T + BLOCK_ROWS - 1) / BLOCK_ROWS;
#pragma omp parallel for collapse(2) schedule(dynamic, 1)
    for (long block = 0; block < blocks; block++)
        for (long panel = 0; panel < panels; panel++) {
            const long end = std::min(T, (block + 1) * BLOCK_ROWS);
            for (long row = block * BLOCK_ROWS; row < end; row += ROWS)
                with_rows(std::min<long>(ROWS, end - row), [&](auto rows) { tile(rows, row, panel * 64); });
        }
}
