// What a decoding step adds: attention over a decode's own keys, one softmax with the partial results over its
// document's keys, and the LM head that keeps only what greedy decoding needs of 262,144 logits.
#include <algorithm>
#include <vector>

#include "dot8.h"
#include "linear.h"

namespace {

inline float dot(const bf16* a, const bf16* b, int n) {
    __m512 sum = _mm512_setzero_ps();
    for (int i = 0; i < n; i += 32)
        sum = _mm512_dpbf16_ps(sum, as_bf16(_mm512_loadu_si512(a + i)), as_bf16(_mm512_loadu_si512(b + i)));
    return _mm512_reduce_add_ps(sum);
}

struct Best {
    float highest = -INFINITY, total = 0.0f;
    long token = 0;
    bool broken = false;  // a logit was no number
};

// One row's logits of a panel's 64 tokens: the best so far, and the sum of e^(logit - best).
inline void take(Best& best, float* row, long panel, float softcap) {
    if (softcap > 0)
        for (int c = 0; c < 64; c++) row[c] = std::tanh(row[c] / softcap) * softcap;
    const __m512 x0 = _mm512_load_ps(row), x1 = _mm512_load_ps(row + 16);
    const __m512 x2 = _mm512_load_ps(row + 32), x3 = _mm512_load_ps(row + 48);
    const float top = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_max_ps(x0, x1), _mm512_max_ps(x2, x3)));
    if (top > best.highest || (top == best.highest && panel * 64 < best.token)) {
        int c = 0;
        while (c < 63 && row[c] != top) c++;
        best.total *= best.highest == -INFINITY ? 0.0f : std::exp(best.highest - top);
        best.highest = top, best.token = panel * 64 + c;
    }
    const __m512 all = _mm512_add_ps(_mm512_add_ps(x0, x1), _mm512_add_ps(x2, x3));
    best.broken |= std::isnan(_mm512_reduce_add_ps(all)) || best.highest == INFINITY;
    if (best.highest == -INFINITY) return;
    const __m512 high = _mm512_set1_ps(best.highest);
    const __m512 e = _mm512_add_ps(
        _mm512_add_ps(exp16(_mm512_sub_ps(x0, high)), exp16(_mm512_sub_ps(x1, high))),
        _mm512_add_ps(exp16(_mm512_sub_ps(x2, high)), exp16(_mm512_sub_ps(x3, high))));
    best.total += _mm512_reduce_add_ps(e);
}

// The highest logit's token and its log-probability for each of R rows; V a multiple of 64; softcap 0: none.
// A row with a logit that is no number gets the log-probability NaN. Of equal logits the first token wins.
// `panel_logits(row, some, panel, out)`: logits [some][64] of the panel's tokens.
template <class PanelLogits>
void greedy(long R, long V, float softcap, int64_t* token, float* logprob, const PanelLogits& panel_logits) {
    std::vector<std::vector<Best>> found;
#pragma omp parallel
    {
        std::vector<Best> mine(R);
        alignas(64) float logits[ROWS * 64];
#pragma omp for schedule(dynamic, 16)
        for (long panel = 0; panel < V / 64; panel++)
            for (long r = 0; r < R; r += ROWS) {
                const int some = (int)std::min<long>(ROWS, R - r);
                panel_logits(r, some, panel, logits);
                for (int i = 0; i < some; i++) take(mine[r + i], logits + i * 64, panel, softcap);
            }
#pragma omp critical
        found.push_back(std::move(mine));
    }
    for (long r = 0; r < R; r++) {
        Best best;
        bool broken = false;
        for (const auto& mine : found) {
            broken |= mine[r].broken;
            if (mine[r].highest > best.highest || (mine[r].highest == best.highest && mine[r].token < best.token))
                best.highest = mine[r].highest, best.token = mine[r].token;
        }
        float total = 0.0f;
        for (const auto& mine : found)
            if (mine[r].total > 0) total += mine[r].total * std::exp(mine[r].highest - best.highest);
        token[r] = best.token;
        logprob[r] = broken || best.highest == -INFINITY ? NAN : -std::log(total);
    }
}

}  // namespace

extern "C" {

// out[t, h] = one softmax over the own keys low..high of row `rows[t]` and the partial results of its document.
// Own keys: key j of row r and head k at r * row_stride + k * head_stride + j * step. Partial results: those of
// cm_attend; token t is number `place[t]` in `splits[t]` slots from slot0[t] + head * splits[t] on.
void cm_own_and_merge(const bf16* q, const bf16* keys, const bf16* values, long row_stride, long head_stride, long step,
                      const int32_t* rows, const int32_t* lows, const int32_t* highs, const float* part,
                      const float* stats, long slot_rows, const int32_t* slot0, const int32_t* splits,
                      const int32_t* place, bf16* out, long T, int H, int K, int D, float scale) {
    const int G = H / K;
#pragma omp parallel for schedule(dynamic, 1)
    for (long th = 0; th < T * H; th++) {
        const long t = th / H;
        const int h = (int)(th % H), head = h / G, low = lows[t], n = highs[t] - low;
        const bf16* query = q + th * D;
        const bf16* k = keys + rows[t] * row_stride + head * head_stride + low * step;
        const bf16* v = values + rows[t] * row_stride + head * head_stride + low * step;
        std::vector<float> share(n);
        float top = -INFINITY, total = 0.0f;
        for (int j = 0; j < n; j++) top = std::max(top, share[j] = scale * dot(query, k + j * step, D));
        const long slot = slot0[t] + (long)head * splits[t];
        const long at = place[t] * (long)G + h % G;
        for (int s = 0; s < splits[t]; s++) top = std::max(top, stats[((slot + s) * slot_rows + at) * 2]);
        for (int j = 0; j < n; j++) total += share[j] = std::exp(share[j] - top);
        alignas(64) float sums[512];
        std::fill(sums, sums + D, 0.0f);
        for (int j = 0; j < n; j++) {
            const __m512 weight = _mm512_set1_ps(share[j]);
            for (int d = 0; d < D; d += 16)
                _mm512_store_ps(sums + d, _mm512_fmadd_ps(weight, load16(v + j * step + d), _mm512_load_ps(sums + d)));
        }
        for (int s = 0; s < splits[t]; s++) {
            const long from = (slot + s) * slot_rows + at;
            const float factor = std::exp(stats[from * 2] - top);
            total += factor * stats[from * 2 + 1];
            const __m512 weight = _mm512_set1_ps(factor);
            for (int d = 0; d < D; d += 16)
                _mm512_store_ps(sums + d,
                                _mm512_fmadd_ps(weight, _mm512_loadu_ps(part + from * D + d), _mm512_load_ps(sums + d)));
        }
        const __m512 norm = _mm512_set1_ps(1.0f / total);
        for (int d = 0; d < D; d += 16) store16(out + th * D + d, _mm512_mul_ps(_mm512_load_ps(sums + d), norm));
    }
}

// Packed rows for the head: embedding [V, E] -> tiles of 16 tokens [V / 16, E / 2, 16, 2].
void cm_pack_rows(const bf16* rows, bf16* packed, long V, int E) {
#pragma omp parallel for schedule(static)
    for (long tile = 0; tile < V / 16; tile++)
        for (int p = 0; p < E / 2; p++)
            for (int c = 0; c < 16; c++)
                memcpy(packed + tile * 16 * E + p * 32 + c * 2, rows + (tile * 16 + c) * E + p * 2, 4);
}

// Greedy decoding's choice over hidden [R, E] and the head's packed rows.
void cm_greedy_head(const bf16* hidden, const bf16* packed, long R, long V, int E, float softcap, int64_t* token,
                    float* logprob) {
    greedy(R, V, softcap, token, logprob, [=](long r, int some, long panel, float* out) {
        const uint32_t* a[ROWS];
        for (int i = 0; i < some; i++) a[i] = (const uint32_t*)(hidden + (r + i) * E);
        dot_rows<false>(some, a, packed + panel * 64 * E, 32, 16L * E, E / 2, out, 64);
    });
}

// The same in 8 bits: quantised rows with their scales, and the head as cm_linear_int8 takes its weights.
void cm_greedy_head_int8(const uint8_t* a, const float* a_scale, const int8_t* w, const float* w_scale,
                         const int32_t* offset, long R, long V, int E, float softcap, int64_t* token, float* logprob) {
    greedy(R, V, softcap, token, logprob, [=](long r, int some, long panel, float* out) {
        with_rows(some, [&](auto rows) {
            dot8_tile<decltype(rows)::value>(a + r * E, a_scale + r, w + panel * 64 * E, w_scale + panel * 64,
                                             offset + panel * 64, E, out);
        });
    });
}
}
