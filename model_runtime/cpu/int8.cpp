// Linear layers in 8 bits: activations quantised per row as they come, weights per output channel once (VNNI).
#include "dot8.h"
#include "linear.h"

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
// [ceil(N / 64) * 4, K / 4, 16, 4]; scales and offsets (128 times each column's sum: what the activations' shift to
// unsigned adds) have ceil(N / 64) * 64 entries.
void cm_linear_int8(const uint8_t* a, const float* a_scale, const int8_t* w, const float* w_scale, const int32_t* offset,
                    const float* bias, const bf16* other, bf16* out, long T, long N, int K, int then) {
    const Out to = {bias, other, out, N, then};
    over_tiles(T, N, [=](auto rows, long row, long column) {
        constexpr int R = decltype(rows)::value;
        alignas(64) float sums[R * 64];
        dot8_tile<R>(a + row * K, a_scale + row, w + column * K, w_scale + column, offset + column, K, sums);
        to.put<R>(sums, row, column);
    });
}
}
