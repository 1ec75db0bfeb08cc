// Linear layers in bfloat16, sums in float32.
#include "linear.h"

extern "C" {

// out [T, N] = a W^T, then bias, then GELU or a product with `other`. W packed as cm_pack_rows leaves it, its rows
// padded to a multiple of 64.
void cm_linear(const bf16* a, const bf16* w, const float* bias, const bf16* other, bf16* out, long T, long N, int K,
               int then) {
    const Out to = {bias, other, out, N, then};
    over_tiles(T, N, [=](auto rows, long row, long column) {
        constexpr int R = decltype(rows)::value;
        alignas(64) float sums[R * 64];
        const uint32_t* inputs[R];
        for (int r = 0; r < R; r++) inputs[r] = (const uint32_t*)(a + (row + r) * K);
        dot_tile<R, false>(inputs, w + column * K, 32, 16L * K, K / 2, sums, 64);
        to.put<R>(sums, row, column);
    });
}
}
