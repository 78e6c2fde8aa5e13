// What fused.py computes in one pass where PyTorch takes two or three.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

const long FEW = 1 << 15;  // numbers that are not worth a second thread
const long ROWS = 32;      // that are summed in floats, before their sums are added in doubles

inline float exp_(float x) {
    // 2^t by its whole part, which are bits of the exponent, and a polynomial of what is left, within -1/2 and 1/2.
    float t = x * 1.44269504f;
    t = t < -126.f ? -126.f : t;
    t = t > 127.f ? 127.f : t;
    const float shifted = t + 12582912.f, f = t - (shifted - 12582912.f);
    uint32_t bits;
    std::memcpy(&bits, &shifted, 4);
    float p = 1.54035304e-4f;
    p = std::fma(p, f, 1.33335581e-3f);
    p = std::fma(p, f, 9.61812911e-3f);
    p = std::fma(p, f, 5.55041087e-2f);
    p = std::fma(p, f, 2.40226507e-1f);
    p = std::fma(p, f, 6.93147181e-1f);
    p = std::fma(p, f, 1.f);
    bits = (bits + 127) << 23;
    float power;
    std::memcpy(&power, &bits, 4);
    return p * power;
}

inline float silu(float x) { return x / (1.f + exp_(-x)); }

// By Abramowitz & Stegun 7.1.26, to 1.5e-7.
inline float gelu(float x) {
    const float z = std::fabs(x) * 0.70710678f, t = 1.f / std::fma(0.3275911f, z, 1.f);
    float p = 1.061405429f;
    p = std::fma(p, t, -1.453152027f);
    p = std::fma(p, t, 1.421413741f);
    p = std::fma(p, t, -0.284496736f);
    p = std::fma(p, t, 0.254829592f);
    const float tail = 0.5f * p * t * exp_(-z * z);
    return x * (x < 0.f ? tail : 1.f - tail);
}

}  // namespace

extern "C" {

// h gelu(gate), of rows (h, gate) of twice the width.
void gated(const float* x, float* out, long rows, long width, int threads) {
#pragma omp parallel for num_threads(threads) if (rows * width > FEW) schedule(static)
    for (long i = 0; i < rows; ++i) {
        const float *h = x + 2 * i * width, *gate = h + width;
        float* to = out + i * width;
#pragma omp simd
        for (long j = 0; j < width; ++j) to[j] = h[j] * gelu(gate[j]);
    }
}

// silu(group norm(x)) of maps (batch, places, channels).
void norm_silu(const float* x, float* out, const float* weight, const float* bias, long batch, long places, long channels,
               long groups, float eps, int threads) {
    const long parts = batch * places * channels > FEW ? threads : 1, each = (places + parts - 1) / parts;
    const long of = channels / groups;
    std::vector<double> sums(batch * parts * 2 * channels);
    std::vector<float> told(batch * 2 * channels);
#pragma omp parallel for num_threads(threads) if (parts > 1) schedule(static)
    for (long part = 0; part < batch * parts; ++part) {
        const long first = part % parts * each, last = first + each < places ? first + each : places;
        // Less the first place's, whose squares would drown what they differ by.
        const float *from = x + part / parts * places * channels, *zero = from;
        double *sum = &sums[part * 2 * channels], *square = sum + channels;
        std::vector<float> held(2 * channels);
        float *s = held.data(), *q = s + channels;
        for (long begin = first; begin < last; begin += ROWS) {
            const long end = begin + ROWS < last ? begin + ROWS : last;
            std::memset(s, 0, 2 * channels * sizeof(float));
            for (long i = begin; i < end; ++i) {
                const float* row = from + i * channels;
#pragma omp simd
                for (long c = 0; c < channels; ++c) {
                    const float less = row[c] - zero[c];
                    s[c] += less;
                    q[c] = std::fma(less, less, q[c]);
                }
            }
            for (long c = 0; c < channels; ++c) sum[c] += s[c], square[c] += q[c];
        }
    }
    std::vector<double> means(of);
    for (long b = 0; b < batch; ++b)
        for (long g = 0; g < groups; ++g) {
            // The mean of all channels, and the mean square of what is apart from it, within them and between.
            const long begin = g * of;
            double mean = 0, spread = 0;
            for (long c = 0; c < of; ++c) {
                double sum = 0, square = 0;
                for (long part = b * parts; part < (b + 1) * parts; ++part) {
                    sum += sums[part * 2 * channels + begin + c];
                    square += sums[(part * 2 + 1) * channels + begin + c];
                }
                sum /= places;
                spread += square / places - sum * sum;
                means[c] = x[b * places * channels + begin + c] + sum;
                mean += means[c] / of;
            }
            for (long c = 0; c < of; ++c) spread += (means[c] - mean) * (means[c] - mean);
            const double per = 1 / std::sqrt((spread < 0 ? 0 : spread / of) + eps);
            for (long c = begin; c < begin + of; ++c) {
                told[b * 2 * channels + c] = float(mean);
                told[(b * 2 + 1) * channels + c] = float(weight[c] * per);
            }
        }
#pragma omp parallel for num_threads(threads) if (parts > 1) schedule(static)
    for (long i = 0; i < batch * places; ++i) {
        const float *row = x + i * channels, *mean = &told[i / places * 2 * channels], *scale = mean + channels;
        float* to = out + i * channels;
#pragma omp simd
        for (long c = 0; c < channels; ++c) to[c] = silu(std::fma(row[c] - mean[c], scale[c], bias[c]));
    }
}

}  // extern "C"
