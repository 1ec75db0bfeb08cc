// Shared by the CPU kernels: bfloat16 in and out of 16 float lanes, exp, and row loops. AVX-512 with BF16 and VNNI.
#pragma once
#include <immintrin.h>
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <cstring>

using bf16 = uint16_t;

// Before the loops of a micro kernel: unrolled late, GCC keeps the sums on the stack, at half the speed.
#define UNROLL _Pragma("GCC unroll 32")

static inline __m512 widen(__m256i x) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16));
}
static inline __m512 load16(const bf16* p) { return widen(_mm256_loadu_si256((const __m256i*)p)); }
static inline __m256i narrow(__m512 x) { return (__m256i)_mm512_cvtneps_pbh(x); }
static inline void store16(bf16* p, __m512 x) { _mm256_storeu_si256((__m256i*)p, narrow(x)); }
// What a bfloat16 tensor would hold: results that the reference keeps in bfloat16 are rounded where it rounds them.
static inline __m512 rounded(__m512 x) { return widen(narrow(x)); }
static inline __m512bh as_bf16(__m512i x) { return (__m512bh)x; }
static inline __m512bh two_bf16(uint32_t pair) { return (__m512bh)_mm512_set1_epi32((int)pair); }

// sum += a . b, two products of bfloat16 a lane; and four of unsigned times signed bytes. As instructions and not as
// intrinsics: of those GCC 12 makes copies of the sums, and of two dozen sums so many that they leave the registers.
static inline void add_dot(__m512& sum, __m512bh a, __m512bh b) { asm("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b)); }
static inline void add_dot(__m512i& sum, __m512i a, __m512i b) { asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b)); }

// e^x for x <= 0 to float32 accuracy: 2^n times a degree-6 polynomial in the remainder (Cephes' expf coefficients).
static inline __m512 exp16(__m512 x) {
    const __m512 low = _mm512_set1_ps(-87.3f);
    const __mmask16 gone = _mm512_cmp_ps_mask(x, low, _CMP_LT_OQ);
    const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), 8);
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
    __m512 p = _mm512_set1_ps(1.9875691500e-4f);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.3981999507e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(8.3334519073e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(4.1665795894e-2f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.6666665459e-1f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.0000001201e-1f));
    p = _mm512_fmadd_ps(_mm512_mul_ps(p, r), r, _mm512_add_ps(r, _mm512_set1_ps(1.0f)));
    return _mm512_maskz_scalef_ps((__mmask16)~gone, p, n);
}

static inline float sum_of_squares(const bf16* x, int n) {
    __m512 a = _mm512_setzero_ps(), b = _mm512_setzero_ps();
    int i = 0;
    for (; i + 32 <= n; i += 32) {
        const __m512 u = load16(x + i), v = load16(x + i + 16);
        a = _mm512_fmadd_ps(u, u, a);
        b = _mm512_fmadd_ps(v, v, b);
    }
    if (i < n) {
        const __m512 u = load16(x + i);
        a = _mm512_fmadd_ps(u, u, a);
    }
    return _mm512_reduce_add_ps(_mm512_add_ps(a, b));
}
static inline float inverse_rms(const bf16* x, int n, float eps) { return 1.0f / std::sqrt(sum_of_squares(x, n) / n + eps); }
