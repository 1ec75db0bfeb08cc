// RMS norms, residual sums, rotary positions, and the layouts attention reads. Sizes are multiples of 16 (heads of 32).
#include "common.h"

// Where a key or value of token t stands: tiles of 16 keys with neighbouring dimensions in pairs, and pairs of
// neighbouring tokens side by side. Both are what the dot product instruction takes two of at a time.
static inline void put_key(bf16* tiles, const bf16* k, long t, int D) {
    uint32_t* tile = (uint32_t*)(tiles + (t / 16) * 16L * D) + t % 16;
    const uint32_t* pairs = (const uint32_t*)k;
    for (int d = 0; d < D / 2; d++) tile[d * 16] = pairs[d];
}
static inline void put_value(bf16* pairs, const bf16* v, long t, int D) {
    bf16* row = pairs + (t / 2) * 2L * D + t % 2;
    for (int d = 0; d < D; d++) row[2 * d] = v[d];
}

// One head: normalised, weighted, rounded, and turned by its token's angles when there are any.
static inline void norm_rotate(const bf16* x, const float* weight, const float* cos, const float* sin, bf16* y, int D,
                               float eps) {
    const __m512 scale = _mm512_set1_ps(inverse_rms(x, D, eps));
    if (!cos) {
        for (int d = 0; d < D; d += 16)
            store16(y + d, _mm512_mul_ps(_mm512_mul_ps(load16(x + d), scale), _mm512_loadu_ps(weight + d)));
        return;
    }
    const int half = D / 2;
    for (int d = 0; d < half; d += 16) {
        const __m512 a = rounded(_mm512_mul_ps(_mm512_mul_ps(load16(x + d), scale), _mm512_loadu_ps(weight + d)));
        const __m512 b =
            rounded(_mm512_mul_ps(_mm512_mul_ps(load16(x + half + d), scale), _mm512_loadu_ps(weight + half + d)));
        const __m512 c = _mm512_loadu_ps(cos + d), s = _mm512_loadu_ps(sin + d);
        store16(y + d, _mm512_fnmadd_ps(b, s, _mm512_mul_ps(a, c)));
        store16(y + half + d, _mm512_fmadd_ps(a, s, _mm512_mul_ps(b, c)));
    }
}

extern "C" {

// y[r] = x[r] / rms(x[r]) * weight.
void cm_rms_norm(const bf16* x, const float* weight, bf16* y, long rows, int n, float eps) {
#pragma omp parallel for schedule(static) if (rows > 16)
    for (long r = 0; r < rows; r++) {
        const bf16* in = x + r * n;
        const __m512 scale = _mm512_set1_ps(inverse_rms(in, n, eps));
        for (int i = 0; i < n; i += 16)
            store16(y + r * n + i, _mm512_mul_ps(_mm512_mul_ps(load16(in + i), scale), _mm512_loadu_ps(weight + i)));
    }
}

// x[r] += norm(branch[r]) with the post norm's weight; then y[r] = norm(x[r]) with the next norm's.
void cm_residual_norm(bf16* x, const bf16* branch, const float* post, const float* next, bf16* y, long rows, int n,
                      float eps) {
#pragma omp parallel for schedule(static) if (rows > 16)
    for (long r = 0; r < rows; r++) {
        bf16* stream = x + r * n;
        const bf16* in = branch + r * n;
        const __m512 scale = _mm512_set1_ps(inverse_rms(in, n, eps));
        __m512 squares = _mm512_setzero_ps();
        for (int i = 0; i < n; i += 16) {
            const __m512 normed = rounded(_mm512_mul_ps(_mm512_mul_ps(load16(in + i), scale), _mm512_loadu_ps(post + i)));
            const __m512 sum = rounded(_mm512_add_ps(load16(stream + i), normed));
            store16(stream + i, sum);
            squares = _mm512_fmadd_ps(sum, sum, squares);
        }
        const __m512 again = _mm512_set1_ps(1.0f / std::sqrt(_mm512_reduce_add_ps(squares) / n + eps));
        for (int i = 0; i < n; i += 16)
            store16(y + r * n + i, _mm512_mul_ps(_mm512_mul_ps(load16(stream + i), again), _mm512_loadu_ps(next + i)));
    }
}

// qkv [T, (H + 2K) * D] -> queries [T, H, D], and keys and values either packed per head (stride head_stride elements)
// or plain [T, K, D]. cos, sin: float [T, D / 2].
void cm_heads(const bf16* qkv, const float* q_weight, const float* k_weight, const float* cos, const float* sin, bf16* q,
              bf16* k, bf16* v, long head_stride, long T, int H, int K, int D, float eps, int packed) {
    const long width = (long)(H + 2 * K) * D;
#pragma omp parallel for schedule(static) if (T > 16)
    for (long tile = 0; tile < (T + 15) / 16; tile++) {
        alignas(64) bf16 key[1024];
        for (long t = tile * 16; t < T && t < tile * 16 + 16; t++) {
            const bf16* row = qkv + t * width;
            const float *c = cos + t * (D / 2), *s = sin + t * (D / 2);
            for (int h = 0; h < H; h++) norm_rotate(row + h * D, q_weight, c, s, q + (t * H + h) * D, D, eps);
            for (int h = 0; h < K; h++) {
                const bf16 *kin = row + (H + h) * D, *vin = row + (H + K + h) * D;
                if (packed) {
                    norm_rotate(kin, k_weight, c, s, key, D, eps);
                    put_key(k + h * head_stride, key, t, D);
                    put_value(v + h * head_stride, vin, t, D);
                } else {
                    norm_rotate(kin, k_weight, c, s, k + (t * K + h) * D, D, eps);
                    memcpy(v + (t * K + h) * D, vin, D * sizeof(bf16));
                }
            }
        }
    }
}

// kv [T, layers, 2, K, D] (keys, then values) -> packed keys and values [layers, K, head_stride], tokens first.. on.
// `weights`: the layers' key norms [layers, D]; no positions.
void cm_document_keys(const bf16* kv, const float* weights, bf16* k, bf16* v, long head_stride, long first, long T,
                      int layers, int K, int D, float eps) {
#pragma omp parallel for collapse(2) schedule(static)
    for (int layer = 0; layer < layers; layer++)
        for (long tile = 0; tile < (T + 15) / 16; tile++) {
            alignas(64) bf16 key[1024];
            for (long t = tile * 16; t < T && t < tile * 16 + 16; t++) {
                const bf16* row = kv + (t * layers + layer) * 2L * K * D;
                for (int h = 0; h < K; h++) {
                    const long head = ((long)layer * K + h) * head_stride;
                    norm_rotate(row + h * D, weights + (long)layer * D, nullptr, nullptr, key, D, eps);
                    put_key(k + head, key, first + t, D);
                    put_value(v + head, row + (K + h) * D, first + t, D);
                }
            }
        }
}
}
