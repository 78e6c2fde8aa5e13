// Attention in whole numbers of sixteen bits, of which VNNI multiplies and adds thirty-two at a time: what
// quantized_attention.py is about. Without that there is nothing in here.

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VNNI__)
#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

namespace {

const int ROWS = 6;      // queries whose sums stay in registers,
const int TILE = 24;     // that go over a block of keys before the next block comes,
const int BLOCK = 128;   // of so many keys, after which sums of values would not fit 32 bits.
const float WEIGHT = 16384, VALUE = 1023;  // what 1, and the largest value of a channel, are rounded to

struct Rows {
    const float* at;
    long batch, head, row;
    const float* of(long b, long h, long i) const { return at + b * batch + h * head + i * row; }
};

__m512 exp2(__m512 x) {
    const __m512 whole = _mm512_roundscale_ps(x, 0), f = _mm512_sub_ps(x, whole);
    __m512 p = _mm512_set1_ps(0.00133335581f);
    for (float each : {0.00961812911f, 0.0555041087f, 0.240226507f, 0.693147181f, 1.0f})
        p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(each));
    return _mm512_scalef_ps(p, whole);
}

#define INLINE [[gnu::always_inline]] inline

// Sums, or columns, of G groups of sixteen, and of R rows of such: chains of members and no arrays, and added to by
// the instruction itself, since GCC 12 moves them to memory and back otherwise, at twice the time.
template <int G>
struct Groups {
    __m512i here = _mm512_setzero_si512();
    Groups<G - 1> more;
    INLINE void load(const __m512i* from, long step) {
        here = _mm512_loadu_si512(from);
        more.load(from + step, step);
    }
    INLINE void add(const __m512i& told, const Groups& columns) {
        asm("vpdpwssd %2, %1, %0" : "+v"(here) : "v"(told), "v"(columns.here));
        more.add(told, columns.more);
    }
    template <class Put>
    INLINE void give(int r, int g, Put put) const {
        put(r, g, here);
        more.give(r, g + 1, put);
    }
};
template <>
struct Groups<0> {
    INLINE void load(const __m512i*, long) {}
    INLINE void add(const __m512i&, const Groups&) {}
    template <class Put>
    INLINE void give(int, int, Put) const {}
};
template <int R, int G>
struct Sums {
    Groups<G> here;
    Sums<R - 1, G> more;
    INLINE void add(const int32_t* pair, long row, const Groups<G>& columns) {
        here.add(_mm512_set1_epi32(*pair), columns);
        more.add(pair + row, row, columns);
    }
    template <class Put>
    INLINE void give(int r, Put put) const {
        here.give(r, 0, put);
        more.give(r + 1, put);
    }
};
template <int G>
struct Sums<0, G> {
    INLINE void add(const int32_t*, long, const Groups<G>&) {}
    template <class Put>
    INLINE void give(int, Put) const {}
};

// put(r, g, Σ a[r][pair] · b[g][pair]) of pairs of numbers of sixteen bits, sixteen columns in each group g.
template <int G, class Put>
INLINE void multiply(const int32_t* a, long row, const __m512i* b, long group, long step, long pairs, Put put) {
    Sums<ROWS, G> sums;
    for (long pair = 0; pair < pairs; ++pair) {
        Groups<G> columns;
        columns.load(b + pair * step, group);
        sums.add(a + pair, row, columns);
    }
    sums.give(0, put);
}

// The products of ROWS queries with a block of keys.
[[gnu::noinline]] void ask(const int16_t* rows, const int16_t* keys, long d, int32_t (*scores)[BLOCK]) {
    for (long part = 0; part < BLOCK; part += 64)
        multiply<4>(reinterpret_cast<const int32_t*>(rows), d / 2, reinterpret_cast<const __m512i*>(keys + part * d),
                    d / 2, 1, d / 2,
                    [=](int r, int g, __m512i sum) { _mm512_store_si512(scores[r] + part + 16 * g, sum); });
}

// out[r] += weights[r] · values, for G groups of sixteen channels.
template <int G>
[[gnu::noinline]] void answer(const int16_t (*weights)[BLOCK], const int16_t* values, long wide, float* out) {
    multiply<G>(reinterpret_cast<const int32_t*>(weights), BLOCK / 2, reinterpret_cast<const __m512i*>(values), 1,
                wide / 16, BLOCK / 2, [=](int r, int g, __m512i sum) {
                    float* to = out + r * wide + 16 * g;
                    _mm512_storeu_ps(to, _mm512_add_ps(_mm512_loadu_ps(to), _mm512_cvtepi32_ps(sum)));
                });
}

// Numbers rounded to the next whole one of sixteen bits.
void nearest(const float* x, const float* less, const float* per, int16_t* out, long count) {
#pragma omp simd
    for (long c = 0; c < count; ++c)
        out[c] = static_cast<int16_t>(static_cast<int32_t>(std::nearbyint((x[c] - less[c]) * per[c])));
}

// The mean of each channel, and how far from it any row is.
void spread(const Rows& rows, long b, long h, long m, long d, float* mean, float* far) {
    std::fill(mean, mean + d, 0.0f);
    std::fill(far, far + d, 1e-30f);
    for (long j = 0; j < m; ++j) {
        const float* row = rows.of(b, h, j);
#pragma omp simd
        for (long c = 0; c < d; ++c) mean[c] += row[c];
    }
    for (long c = 0; c < d; ++c) mean[c] /= m;
    for (long j = 0; j < m; ++j) {
        const float* row = rows.of(b, h, j);
#pragma omp simd
        for (long c = 0; c < d; ++c) {
            const float off = std::fabs(row[c] - mean[c]);
            far[c] = off > far[c] ? off : far[c];
        }
    }
}

// One head's keys, (group of 16, pair of channels, key, 2), and values, (pair of keys, channel, 2), less their
// means, which change no weight and are added again; what one of them is worth.
float pack(const Rows& k, const Rows& v, long b, long h, long m, long d, long wide, float limit, int16_t* keys,
           int16_t* values, float* mean, float* worth) {
    std::vector<float> middle(d), per(d), far(d);
    std::vector<int16_t> row(2 * wide, 0);
    spread(k, b, h, m, d, middle.data(), far.data());
    float one = *std::max_element(far.begin(), far.end()) / limit;
    std::fill(per.begin(), per.end(), 1 / one);
    std::fill(keys, keys + (m + BLOCK - 1) / BLOCK * BLOCK * (d + wide), 0);
    for (long j = 0; j < m; ++j) {
        nearest(k.of(b, h, j), middle.data(), per.data(), row.data(), d);
        auto* to = reinterpret_cast<int32_t*>(keys + j / 16 * 16 * d) + j % 16;
        const auto* from = reinterpret_cast<const int32_t*>(row.data());
        for (long pair = 0; pair < d / 2; ++pair) to[16 * pair] = from[pair];
    }
    for (float each : middle) one += each - each;  // what is no number stays none, here and below
    spread(v, b, h, m, d, mean, worth);
    for (long c = 0; c < d; ++c) per[c] = VALUE / worth[c], worth[c] /= VALUE;
    for (long j = 0; j < m; j += 2) {
        int16_t* to = values + j * wide;
        nearest(v.of(b, h, j), mean, per.data(), row.data(), d);
        if (j + 1 < m) nearest(v.of(b, h, j + 1), mean, per.data(), row.data() + wide, d);
        else std::fill(row.begin() + wide, row.end(), 0);
#pragma omp simd
        for (long c = 0; c < wide; ++c) to[2 * c] = row[c], to[2 * c + 1] = row[wide + c];
    }
    return one;
}

// The weights of ROWS queries over a block of keys; sums, and answers so far, follow the largest score.
void weigh(const int32_t (*scores)[BLOCK], const float* scale, const __mmask16* there, int16_t (*weights)[BLOCK],
           float* most, float* sum, float* out, long wide) {
    for (int r = 0; r < ROWS; ++r) {
        __m512i high = _mm512_set1_epi32(INT32_MIN);
#pragma GCC unroll 8
        for (int g = 0; g < BLOCK / 16; ++g)
            high = _mm512_mask_max_epi32(high, there[g], high, _mm512_load_si512(scores[r] + 16 * g));
        const float top = std::max(most[r], _mm512_reduce_max_epi32(high) * scale[r]);
        if (top > most[r]) {
            const float less = std::exp2(most[r] - top);
            sum[r] *= less;
            for (float* each = out + r * wide; each < out + (r + 1) * wide; ++each) *each *= less;
            most[r] = top;
        }
        const __m512 unit = _mm512_set1_ps(scale[r]), shift = _mm512_set1_ps(std::log2(WEIGHT) - top);
        __m512i total = _mm512_setzero_si512();
#pragma GCC unroll 8
        for (int g = 0; g < BLOCK / 16; ++g) {
            const __m512 score = _mm512_cvtepi32_ps(_mm512_load_si512(scores[r] + 16 * g));
            const __m512i weight = _mm512_maskz_cvtps_epi32(there[g], exp2(_mm512_fmadd_ps(score, unit, shift)));
            total = _mm512_add_epi32(total, weight);
            _mm256_store_si256(reinterpret_cast<__m256i*>(weights[r] + 16 * g), _mm512_cvtepi32_epi16(weight));
        }
        sum[r] += _mm512_reduce_add_epi32(total);
    }
}

}  // namespace

extern "C" {

// Numbers of sixteen bits that the keys and values of one head take, whole lines of memory.
long scratch(long m, long d) {
    const long padded = (m + BLOCK - 1) / BLOCK * BLOCK, wide = (d + 15) / 16 * 16;
    return (padded * (d + wide) + 31) / 32 * 32;
}

// softmax(q kᵀ scale) v of rows of d channels, an even number; strides in numbers: batch, head, row of each.
void attention(const float* q, const float* k, const float* v, float* out, const long* strides, long batch,
               long heads, long n, long m, long d, float scale, int16_t* laid, int threads) {
    const Rows asked{q, strides[0], strides[1], strides[2]}, keyed{k, strides[3], strides[4], strides[5]},
        valued{v, strides[6], strides[7], strides[8]};
    const long wide = (d + 15) / 16 * 16, groups = wide / 16, padded = (m + BLOCK - 1) / BLOCK * BLOCK;
    const long each = scratch(m, d), tiles = (n + TILE - 1) / TILE;
    const float limit = std::min(32767.0f, std::floor(std::sqrt(2147483000.0f / d)));
    std::vector<float> ones(batch * heads), means(batch * heads * wide), worths(batch * heads * wide);
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(dynamic)
        for (long head = 0; head < batch * heads; ++head) {
            int16_t* keys = laid + head * each;
            ones[head] = pack(keyed, valued, head / heads, head % heads, m, d, wide, limit, keys, keys + padded * d,
                              &means[head * wide], &worths[head * wide]);
        }
        alignas(64) int32_t scores[ROWS][BLOCK];
        alignas(64) int16_t weights[ROWS][BLOCK];
        std::vector<int16_t> rows(TILE * d);
        std::vector<float> per(d), nothing(d, 0.0f), made(TILE * wide), scales(TILE), most(TILE), sum(TILE);
#pragma omp for schedule(dynamic, 4)
        for (long tile = 0; tile < batch * heads * tiles; ++tile) {
            const long head = tile / tiles, first = tile % tiles * TILE, here = std::min<long>(TILE, n - first);
            const int16_t *keys = laid + head * each, *values = keys + padded * d;
            for (long i = 0; i < TILE; ++i) {
                const float* row = asked.of(head / heads, head % heads, first + std::min(i, here - 1));
                float high = 1e-30f, odd = 0;
#pragma omp simd reduction(max : high) reduction(+ : odd)
                for (long c = 0; c < d; ++c) {
                    high = std::fabs(row[c]) > high ? std::fabs(row[c]) : high;
                    odd += row[c] - row[c];
                }
                std::fill(per.begin(), per.end(), limit / high);
                nearest(row, nothing.data(), per.data(), &rows[i * d], d);
                scales[i] = high / limit * ones[head] * scale * 1.44269504f + odd;
            }
            std::fill(made.begin(), made.end(), 0.0f);
            std::fill(most.begin(), most.end(), -INFINITY);
            std::fill(sum.begin(), sum.end(), 0.0f);
            for (long start = 0; start < m; start += BLOCK) {
                __mmask16 there[BLOCK / 16];
                for (long g = 0; g < BLOCK / 16; ++g) {
                    const long left = std::clamp(m - start - 16 * g, 0L, 16L);
                    there[g] = (1 << left) - 1;
                }
                for (long i = 0; i < here; i += ROWS) {
                    ask(&rows[i * d], keys + start * d, d, scores);
                    weigh(scores, &scales[i], there, weights, &most[i], &sum[i], &made[i * wide], wide);
                    const int16_t* from = values + start * wide;
                    float* to = &made[i * wide];
                    long g = 0;
                    for (; g + 4 <= groups; g += 4) answer<4>(weights, from + 32 * g, wide, to + 16 * g);
                    if (groups - g == 3) answer<3>(weights, from + 32 * g, wide, to + 16 * g);
                    if (groups - g == 2) answer<2>(weights, from + 32 * g, wide, to + 16 * g);
                    if (groups - g == 1) answer<1>(weights, from + 32 * g, wide, to + 16 * g);
                }
            }
            const float *mean = &means[head * wide], *worth = &worths[head * wide];
            for (long i = 0; i < here; ++i) {
                float* to = out + head / heads * strides[9] + head % heads * strides[10] + (first + i) * strides[11];
                const float odd = scales[i] - scales[i];
                for (long c = 0; c < d; ++c) to[c] = made[i * wide + c] / sum[i] * worth[c] + mean[c] + odd;
            }
        }
    }
}

}  // extern "C"

#endif
