// What int8.py does with the numbers that a layer is given, in two passes where PyTorch takes five.

#include <cmath>
#include <cstdint>
#include <cstring>

namespace {

const long FEW = 1 << 15;  // numbers that are not worth a second thread

uint8_t below(float x) { return static_cast<uint8_t>(static_cast<int>(x)); }

}  // namespace

extern "C" {

// The least and the most of some numbers; NaN, twice, if one of them is.
void ends(const float* x, long count, float* found, int threads) {
    float least = x[0], most = x[0];
    int odd = 0;
#pragma omp parallel for simd num_threads(threads) if (count > FEW) reduction(min : least) reduction(max : most) \
    reduction(| : odd) schedule(static)
    for (long i = 0; i < count; ++i) {
        least = x[i] < least ? x[i] : least;
        most = x[i] > most ? x[i] : most;
        odd |= x[i] != x[i];
    }
    found[0] = odd ? NAN : least;
    found[1] = odd ? NAN : most;
}

// floor(x per + zero), which is not below 0, of maps (count, tall, wide, channels) with borders of `border` around.
void cut(const float* x, uint8_t* out, long count, long tall, long wide, long channels, long top, long side,
         float per, float zero, int border, int threads) {
    const long row = wide * channels, numbers = count * tall * row;
    if (!top && !side) {
#pragma omp parallel for simd num_threads(threads) if (numbers > FEW) schedule(static)
        for (long i = 0; i < numbers; ++i) out[i] = below(std::fma(x[i], per, zero));
        return;
    }
    const long edge = side * channels, whole = row + 2 * edge, rows = tall + 2 * top;
#pragma omp parallel for num_threads(threads) if (numbers > FEW) schedule(static)
    for (long i = 0; i < count * rows; ++i) {
        uint8_t* to = out + i * whole;
        const long y = i % rows - top;
        if (y < 0 || y >= tall) {
            std::memset(to, border, whole);
            continue;
        }
        std::memset(to, border, edge);
        const float* from = x + ((i / rows) * tall + y) * row;
#pragma omp simd
        for (long j = 0; j < row; ++j) to[edge + j] = below(std::fma(from[j], per, zero));
        std::memset(to + edge + row, border, edge);
    }
}

}  // extern "C"
