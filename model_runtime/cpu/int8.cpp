// Linear layers in 8 bits: activations quantised per row as they come, weights per output channel once (VNNI).
#include <algorithm>

#include "dot8.h"

namespace {

constexpr int BLOCK_ROWS = 96;
enum Then { NOTHING = 0, GELU_TANH = 1, TIMES = 2 };

// x sigmoid(2 sqrt(2/pi) (x + 0.044715 x^3)), which is the tanh approximation of GELU.
inline __m512 gelu(__m512 x) {
    const __m512 cube = _mm512_mul_ps(_mm512_mul_ps(x, x), x);
    const __m512 u = _mm512_mul_ps(_mm512_fmadd_ps(cube, _mm512_set1_ps(0.044715f), x), _mm512_set1_ps(-1.5957691216f));
    return _mm512_div_ps(x, _mm512_add_ps(_mm512_set1_ps(1.0f), exp16(u)));
}

struct Linear {
    const uint8_t* a;
    const float* a_scale;
    const int8_t* w;
    const float* w_scale;
    const int32_t* offset;  // 128 times each column's sum: what the activations' shift to unsigned adds
    const float* bias;      // or null
    const bf16* other;      // or null
    bf16* out;
    long N;
    int K;
    int then;
};

template <int R>
inline void tile(const Linear& l, long row, long column) {
    __m512i sums[R][TILES];
    dot8_tile<R>(l.a + row * l.K, l.K, l.w + column * l.K, 16L * l.K, l.K / 4, sums);
    UNROLL for (int r = 0; r < R; r++) {
        const __m512 scale = _mm512_set1_ps(l.a_scale[row + r]);
        UNROLL for (int c = 0; c < TILES; c++) {
            const long n = column + 16 * c;
            if (n >= l.N) break;
            const __m512i exact = _mm512_sub_epi32(sums[r][c], _mm512_loadu_si512(l.offset + n));
            __m512 y = _mm512_mul_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(exact), scale), _mm512_loadu_ps(l.w_scale + n));
            if (l.bias) y = _mm512_add_ps(y, _mm512_loadu_ps(l.bias + n));
            if (l.then == GELU_TANH) y = gelu(y);
            const long at = (row + r) * l.N + n;
            if (l.then == TIMES) y = _mm512_mul_ps(y, load16(l.other + at));
            store16(l.out + at, y);
        }
    }
}

}  // namespace

extern "C" {

// x [rows, n] -> round(x / scale) + 128, scale = the row's largest magnitude / 127.
void cm_quantize(const bf16* x, uint8_t* out, float* scales, long rows, int n) {
#pragma omp parallel for schedule(static) if (rows > 16)
    for (long r = 0; r < rows; r++) {
        const bf16* in = x + r * n;
        __m512 most = _mm512_setzero_ps(), sum = _mm512_setzero_ps();
        for (int i = 0; i < n; i += 16) {
            const __m512 v = load16(in + i);
            most = _mm512_max_ps(most, _mm512_abs_ps(v));
            sum = _mm512_add_ps(sum, v);
        }
        const float top = _mm512_reduce_max_ps(most), all = _mm512_reduce_add_ps(sum);
        // What is no number stays none: the scale carries it into every output of the row.
        scales[r] = std::isfinite(all) && std::isfinite(top) ? top / 127.0f : NAN;
        const __m512 by = _mm512_set1_ps(top > 0 ? 127.0f / top : 0.0f);
        const __m512i shift = _mm512_set1_epi32(128);
        for (int i = 0; i < n; i += 16) {
            const __m512i q = _mm512_add_epi32(_mm512_cvtps_epi32(_mm512_mul_ps(load16(in + i), by)), shift);
            _mm_storeu_si128((__m128i*)(out + r * n + i), _mm512_cvtusepi32_epi8(q));
        }
    }
}

// out [T, N] = a W^T with scales, then bias, then GELU or a product with `other`. W packed in tiles of 16 columns,
// [ceil(N / 64) * 4, K / 4, 16, 4].
void cm_linear_int8(const uint8_t* a, const float* a_scale, const int8_t* w, const float* w_scale, const int32_t* offset,
                    const float* bias, const bf16* other, bf16* out, long T, long N, int K, int then) {
    const Linear l = {a, a_scale, w, w_scale, offset, bias, other, out, N, K, then};
    const long panels = (N + 63) / 64, blocks = (T + BLOCK_ROWS - 1) / BLOCK_ROWS;
#pragma omp parallel for collapse(2) schedule(static)
    for (long block = 0; block < blocks; block++)
        for (long panel = 0; panel < panels; panel++)
            for (long row = block * BLOCK_ROWS; row < std::min(T, (block + 1) * BLOCK_ROWS); row += ROWS)
                switch (std::min<long>(ROWS, std::min(T, (block + 1) * BLOCK_ROWS) - row)) {
                    case 1: tile<1>(l, row, panel * 64); break;
                    case 2: tile<2>(l, row, panel * 64); break;
                    case 3: tile<3>(l, row, panel * 64); break;
                    case 4: tile<4>(l, row, panel * 64); break;
                    case 5: tile<5>(l, row, panel * 64); break;
                    default: tile<6>(l, row, panel * 64); break;
                }
}
}
