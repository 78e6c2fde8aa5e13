// The transforms of winograd.py, of maps whose channels stand last: as many at a time as a register holds.

#include <algorithm>
#include <cstring>
#include <vector>

namespace {

struct Map {
    long height, width, channels;
    long tall() const { return (height + 3) / 4; }
    long wide() const { return (width + 3) / 4; }
};

template <class T>
struct Winograd {
    typedef T lanes __attribute__((vector_size(64)));
    static const long LANES = 64 / sizeof(T);

    static lanes load(const T* from, long count) {
        lanes v = {};
        if (count >= LANES)
            std::memcpy(&v, from, sizeof v);
        else
            std::memcpy(&v, from, count * sizeof(T));
        return v;
    }

    static void store(T* to, lanes v, long count) {
        if (count >= LANES)
            std::memcpy(to, &v, sizeof v);
        else
            std::memcpy(to, &v, count * sizeof(T));
    }

    // Each from `step` apart to `step` apart, so that rows and columns go the same way.

    // B^T: six places of a map.
    static void read(const lanes* d, lanes* t, int step) {
        const lanes d1 = d[step], d2 = d[2 * step], d3 = d[3 * step], d4 = d[4 * step];
        const lanes even = d4 - 4 * d2, odd = d3 - 4 * d1, less = d4 - d2, other = 2 * (d3 - d1);
        t[0] = 4 * (d[0] - d2) + less;
        t[step] = even + odd;
        t[2 * step] = even - odd;
        t[3 * step] = less + other;
        t[4 * step] = less - other;
        t[5 * step] = 4 * (d1 - d3) + d[5 * step] - d3;
    }

    // A^T: six sums to four places.
    static void write(const lanes* m, lanes* y, int step) {
        const lanes plus = m[step] + m[2 * step], minus = m[step] - m[2 * step];
        const lanes more = m[3 * step] + m[4 * step], less = m[3 * step] - m[4 * step];
        y[0] = m[0] + plus + more;
        y[step] = minus + 2 * less;
        y[2 * step] = plus + 4 * more;
        y[3 * step] = minus + 8 * less + m[5 * step];
    }

    // A: four places of a gradient.
    static void spread(const lanes* e, lanes* p, int step) {
        const lanes e0 = e[0], e1 = e[step], e2 = e[2 * step], e3 = e[3 * step];
        const lanes even = e0 + e2, odd = e1 + e3, far = e0 + 4 * e2, away = 2 * (e1 + 4 * e3);
        p[0] = e0;
        p[step] = even + odd;
        p[2 * step] = even - odd;
        p[3 * step] = far + away;
        p[4 * step] = far - away;
        p[5 * step] = e3;
    }

    // G: three numbers of a kernel.
    static void carry(const lanes* g, lanes* k, int step) {
        const lanes g0 = g[0], g1 = g[step], g2 = g[2 * step];
        const lanes near = (g0 + g2) / -6, middle = g1 / 6, far = (g0 + 4 * g2) / 24, away = g1 / 12;
        k[0] = g0 / 4;
        k[step] = near - middle;
        k[2 * step] = near + middle;
        k[3 * step] = far + away;
        k[4 * step] = far - away;
        k[5 * step] = g2;
    }

    // G^T: six gradients to three.
    static void gather(const lanes* k, lanes* g, int step) {
        const lanes near = (k[step] + k[2 * step]) / -6, far = (k[3 * step] + k[4 * step]) / 24;
        g[0] = k[0] / 4 + near + far;
        g[step] = (k[2 * step] - k[step]) / 6 + (k[3 * step] - k[4 * step]) / 12;
        g[2 * step] = near + 4 * far + k[5 * step];
    }

    // What tiles first .. last of a map become: SIDE x SIDE places, from BEFORE to the left of and above each, in 36
    // matrices (last - first, channels) that stand `apart`.
    template <int SIDE, int BEFORE, void ALONG(const lanes*, lanes*, int)>
    static void tiles(const T* x, T* out, Map map, long first, long last, long apart, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
        for (long tile = first; tile < last; ++tile) {
            const long row = tile / map.wide() % map.tall(), image = tile / map.wide() / map.tall();
            const long left = 4 * (tile % map.wide()) - BEFORE, top = 4 * row - BEFORE;
            const T* from = x + ((image * map.height + top) * map.width + left) * map.channels;
            for (long c = 0; c < map.channels; c += LANES) {
                lanes d[6 * SIDE], rows[36], all[36];
                const long count = map.channels - c;
                for (long i = 0; i < SIDE; ++i)
                    for (long j = 0; j < SIDE; ++j) {
                        const bool within = top + i >= 0 && top + i < map.height && left + j >= 0 && left + j < map.width;
                        d[6 * i + j] = within ? load(from + (i * map.width + j) * map.channels + c, count) : lanes{};
                    }
                for (int j = 0; j < SIDE; ++j) ALONG(d + j, rows + j, 6);
                for (int i = 0; i < 6; ++i) ALONG(rows + 6 * i, all + 6 * i, 1);
                T* to = out + (tile - first) * map.channels + c;
                for (int k = 0; k < 36; ++k) store(to + k * apart, all[k], count);
            }
        }
    }

    // The places that 36 sums of tiles make, and a bias (channels) if there is one.
    static void places(const T* sums, T* out, const T* bias, Map map, long first, long last, long apart, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
        for (long tile = first; tile < last; ++tile) {
            const long column = tile % map.wide(), row = tile / map.wide() % map.tall();
            const long image = tile / map.wide() / map.tall();
            const long tall = std::min(4L, map.height - 4 * row), wide = std::min(4L, map.width - 4 * column);
            T* to = out + ((image * map.height + 4 * row) * map.width + 4 * column) * map.channels;
            for (long c = 0; c < map.channels; c += LANES) {
                lanes all[36], rows[24], made[4];
                const long count = map.channels - c;
                const T* from = sums + (tile - first) * map.channels + c;
                for (int k = 0; k < 36; ++k) all[k] = load(from + k * apart, count);
                for (int j = 0; j < 6; ++j) write(all + j, rows + j, 6);
                const lanes more = bias ? load(bias + c, count) : lanes{};
                for (long i = 0; i < tall; ++i) {
                    write(rows + 6 * i, made, 1);
                    for (long j = 0; j < wide; ++j)
                        store(to + (i * map.width + j) * map.channels + c, made[j] + more, count);
                }
            }
        }
    }

    // One kernel a lane, of nine numbers to 36 that stand `apart`.
    static void carry_one(const lanes* g, T* to, long apart, long count) {
        lanes rows[18], all[36];
        for (int j = 0; j < 3; ++j) carry(g + j, rows + j, 3);
        for (int i = 0; i < 6; ++i) carry(rows + 3 * i, all + 6 * i, 1);
        for (int k = 0; k < 36; ++k) store(to + k * apart, all[k], count);
    }

    // Kernels (out, in, 3, 3) as 36 matrices (in, out).
    static void kernel(const T* weight, T* to, long out, long in, long apart, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
        for (long c = 0; c < in; c += LANES) {
            // Columns as rows first: what is written then goes on where it was, in each of 36 places.
            const long numbers = 9 * std::min(LANES, in - c);
            std::vector<T> held(numbers * out);
            for (long o = 0; o < out; o += LANES)
                for (long i = 0; i < numbers; ++i)
                    for (long row = o; row < std::min(o + LANES, out); ++row)
                        held[i * out + row] = weight[(row * in + c) * 9 + i];
            for (long i = 0; i < numbers; i += 9)
                for (long o = 0; o < out; o += LANES) {
                    lanes g[9];
                    for (long k = 0; k < 9; ++k) g[k] = load(&held[(i + k) * out + o], out - o);
                    carry_one(g, to + (c + i / 9) * out + o, apart, out - o);
                }
        }
    }

    // Kernels (out, 3, 3, in), turned about, as 36 matrices (out, in).
    static void turned(const T* weight, T* to, long out, long in, long apart, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
        for (long o = 0; o < out; ++o)
            for (long c = 0; c < in; c += LANES) {
                lanes g[9];
                for (int i = 0; i < 9; ++i) g[i] = load(weight + (o * 9 + 8 - i) * in + c, in - c);
                carry_one(g, to + o * in + c, apart, in - c);
            }
    }

    // The gradient of kernels (out, 3, 3, in), of that of 36 matrices (out, in).
    static void gradient(const T* sums, T* weight, long out, long in, long apart, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
        for (long o = 0; o < out; ++o)
            for (long c = 0; c < in; c += LANES) {
                lanes all[36], rows[18], g[3];
                const long count = in - c;
                for (long k = 0; k < 36; ++k) all[k] = load(sums + k * apart + o * in + c, count);
                for (int j = 0; j < 6; ++j) gather(all + j, rows + j, 6);
                for (int i = 0; i < 3; ++i) {
                    gather(rows + 6 * i, g, 1);
                    for (int j = 0; j < 3; ++j) store(weight + (o * 9 + 3 * i + j) * in + c, g[j], count);
                }
            }
    }
};

}  // namespace

extern "C" {

#define KERNELS(T, NAME)                                                                                          \
    void read_##NAME(const T* x, T* out, long height, long width, long channels, long first, long last, long apart,  \
                     int threads) {                                                                                  \
        typedef Winograd<T> W;                                                                                       \
        W::tiles<6, 1, W::read>(x, out, {height, width, channels}, first, last, apart, threads);                     \
    }                                                                                                                \
    void spread_##NAME(const T* x, T* out, long height, long width, long channels, long first, long last, long apart, \
                       int threads) {                                                                                \
        typedef Winograd<T> W;                                                                                       \
        W::tiles<4, 0, W::spread>(x, out, {height, width, channels}, first, last, apart, threads);                   \
    }                                                                                                                \
    void write_##NAME(const T* sums, T* out, const T* bias, long height, long width, long channels, long first,      \
                      long last, long apart, int threads) {                                                          \
        Winograd<T>::places(sums, out, bias, {height, width, channels}, first, last, apart, threads);                \
    }                                                                                                                \
    void kernel_##NAME(const T* weight, T* to, long out, long in, long apart, int threads) {                         \
        Winograd<T>::kernel(weight, to, out, in, apart, threads);                                                    \
    }                                                                                                                \
    void turned_##NAME(const T* weight, T* to, long out, long in, long apart, int threads) {                         \
        Winograd<T>::turned(weight, to, out, in, apart, threads);                                                    \
    }                                                                                                                \
    void gradient_##NAME(const T* sums, T* weight, long out, long in, long apart, int threads) {                     \
        Winograd<T>::gradient(sums, weight, out, in, apart, threads);                                                \
    }

KERNELS(float, float32)
KERNELS(double, float64)

}  // extern "C"
