// Attention over packed keys, tile by tile with a running softmax (Milakov & Gimelshein 2018; Dao et al. 2022):
// scores never leave the cache. A job is one run of query tokens against one range of one document's keys.
#include <algorithm>

#include "dot.h"

namespace {

constexpr int BLOCK_ROWS = 48;        // query rows (tokens x heads that share a key head) worked on together
constexpr int BLOCK_KEYS = 256;       // keys per running softmax update
constexpr int MAX_DIM = 512;

struct Job {
    const bf16* k;         // packed keys and values of one key head, from the document's token 0 on
    const bf16* v;
    int32_t first, count;  // its tokens among `tokens`
    int32_t low, high;     // the keys it looks at
    int32_t head;          // the key head
    int32_t slot;          // partial results go to this slot; -1: results are final
};

struct Workspace {
    alignas(64) float scores[BLOCK_ROWS * BLOCK_KEYS];
    alignas(64) bf16 shares[BLOCK_ROWS * BLOCK_KEYS];
    alignas(64) float sums[BLOCK_ROWS * MAX_DIM];
    float highest[BLOCK_ROWS], total[BLOCK_ROWS];
    int low[BLOCK_ROWS], high[BLOCK_ROWS];
    const uint32_t* query[BLOCK_ROWS];
};

// Row r's scores of keys from..from+width: the running maximum, the shares in bfloat16, and the factor for what was
// summed before.
inline float soften(Workspace& w, int r, int from, int width, float scale) {
    float* scores = w.scores + r * BLOCK_KEYS;
    bf16* shares = w.shares + r * BLOCK_KEYS;
    const int low = w.low[r] - from, high = w.high[r] - from;
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const bool whole = low <= 0 && high >= width;
    const __m512 factor = _mm512_set1_ps(scale), none = _mm512_set1_ps(-INFINITY);
    __m512 best = none;
    for (int i = 0; i < width; i += 16) {
        __m512 s = _mm512_mul_ps(_mm512_loadu_ps(scores + i), factor);
        if (!whole) {
            const __m512i key = _mm512_add_epi32(lane, _mm512_set1_epi32(i));
            const __mmask16 seen = _mm512_cmpge_epi32_mask(key, _mm512_set1_epi32(low)) &
                                   _mm512_cmplt_epi32_mask(key, _mm512_set1_epi32(high));
            s = _mm512_mask_blend_ps(seen, none, s);
        }
        _mm512_storeu_ps(scores + i, s);
        best = _mm512_max_ps(best, s);
    }
    const float before = w.highest[r], now = std::max(before, _mm512_reduce_max_ps(best));
    if (now == -INFINITY) {
        memset(shares, 0, width * sizeof(bf16));
        return 1.0f;
    }
    const __m512 top = _mm512_set1_ps(now);
    __m512 sum = _mm512_setzero_ps();
    for (int i = 0; i < width; i += 16) {
        const __m512 e = exp16(_mm512_sub_ps(_mm512_loadu_ps(scores + i), top));
        sum = _mm512_add_ps(sum, e);
        store16(shares + i, e);
    }
    const float shrink = before == -INFINITY ? 0.0f : std::exp(before - now);
    w.highest[r] = now;
    w.total[r] = w.total[r] * shrink + _mm512_reduce_add_ps(sum);
    return shrink;
}

inline void rescale(float* sums, int D, float by) {
    const __m512 factor = _mm512_set1_ps(by);
    for (int d = 0; d < D; d += 16) _mm512_storeu_ps(sums + d, _mm512_mul_ps(_mm512_loadu_ps(sums + d), factor));
}

// All rows of a block over keys low..high; leaves unnormalised sums, totals and maxima in the workspace.
void run_block(Workspace& w, const Job& job, int rows, int low, int high, int D, float scale) {
    for (int r = 0; r < rows; r++) w.highest[r] = -INFINITY, w.total[r] = 0.0f;
    memset(w.sums, 0, sizeof(float) * rows * D);
    for (int from = low / 16 * 16; from < high; from += BLOCK_KEYS) {
        // To whole micro tiles: what stands behind the last key is masked, and zero where nothing was packed.
        const int width = (std::min(BLOCK_KEYS, high - from) + 63) / 64 * 64;
        for (int c = 0; c < width; c += 64)
            for (int r = 0; r < rows; r += ROWS)
                dot_rows<false>(std::min(ROWS, rows - r), w.query + r, job.k + (from + c) * (long)D, 32, 16L * D, D / 2,
                                w.scores + r * BLOCK_KEYS + c, BLOCK_KEYS);
        for (int r = 0; r < rows; r++) {
            const float shrink = soften(w, r, from, width, scale);
            if (shrink != 1.0f) rescale(w.sums + r * D, D, shrink);
        }
        const uint32_t* shares[ROWS];
        for (int r = 0; r < rows; r += ROWS) {
            const int some = std::min(ROWS, rows - r);
            for (int i = 0; i < some; i++) shares[i] = (const uint32_t*)(w.shares + (r + i) * BLOCK_KEYS);
            int d = 0;
            for (; d + 64 <= D; d += 64)
                dot_rows<true>(some, shares, job.v + (long)from * D + 2 * d, 2L * D, 32, width / 2, w.sums + r * D + d, D);
            for (; d < D; d += 16)  // heads that are no multiple of 64
                for (int i = 0; i < some; i++) {
                    __m512 acc = _mm512_loadu_ps(w.sums + (r + i) * D + d);
                    for (int p = 0; p < width / 2; p++)
                        acc = _mm512_dpbf16_ps(acc, two_bf16(shares[i][p]),
                                               as_bf16(_mm512_loadu_si512(job.v + ((long)from + 2 * p) * D + 2 * d)));
                    _mm512_storeu_ps(w.sums + (r + i) * D + d, acc);
                }
        }
    }
}

}  // namespace

extern "C" {

int cm_job_size() { return sizeof(Job); }

// Each job's tokens over its keys. q, out: [.., H, D]; tokens: query indices, or null for first..first+count;
// low, high: per query token the keys it sees, or null for the job's own range. Jobs with a slot leave unnormalised
// sums [slot, count, G, D] in `part` and maximum and total [slot, count, G, 2] in `stats`; `slot_rows` = count * G at most.
void cm_attend(const Job* jobs, long job_count, const bf16* q, bf16* out, const int32_t* tokens, const int32_t* lows,
               const int32_t* highs, float* part, float* stats, long slot_rows, int H, int K, int D, float scale) {
    const int G = H / K;
#pragma omp parallel
    {
        Workspace* w = new (std::align_val_t(64)) Workspace;
#pragma omp for schedule(dynamic, 1)
        for (long j = 0; j < job_count; j++) {
            const Job& job = jobs[j];
            const int step = std::max(1, BLOCK_ROWS / G);
            for (int begin = 0; begin < job.count; begin += step) {
                const int here = std::min(step, job.count - begin), rows = here * G;
                int low = INT32_MAX, high = 0;
                for (int i = 0; i < here; i++) {
                    const long t = tokens ? tokens[job.first + begin + i] : job.first + begin + i;
                    const int from = lows ? lows[t] : job.low, to = highs ? highs[t] : job.high;
                    low = std::min(low, from), high = std::max(high, to);
                    for (int g = 0; g < G; g++) {
                        w->query[i * G + g] = (const uint32_t*)(q + (t * H + job.head * G + g) * D);
                        w->low[i * G + g] = from, w->high[i * G + g] = to;
                    }
                }
                run_block(*w, job, rows, low, high, D, scale);
                for (int r = 0; r < rows; r++) {
                    const float* sums = w->sums + r * D;
                    if (job.slot >= 0) {
                        const long at = job.slot * slot_rows + begin * G + r;
                        memcpy(part + at * D, sums, sizeof(float) * D);
                        stats[at * 2] = w->highest[r], stats[at * 2 + 1] = w->total[r];
                        continue;
                    }
                    const __m512 share = _mm512_set1_ps(1.0f / w->total[r]);
                    bf16* to = out + ((const bf16*)w->query[r] - q);
                    for (int d = 0; d < D; d += 16) store16(to + d, _mm512_mul_ps(_mm512_loadu_ps(sums + d), share));
                }
            }
        }
        operator delete(w, std::align_val_t(64));
    }
}
}
