// Products of bf16 rows with a matrix packed for them: in bf16, or in four bits with a scale for each group of a row.
//
// Inputs are summed in an order of their own, so that what a row gets depends neither on the rows beside it nor on how
// threads share the work. Two products and sums in fp32 take half the time of one vdpbf16ps, and a product of two
// numbers of bf16 is exact in fp32: the results are those of vdpbf16ps, which adds the second of two inputs first.

#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

using bf16 = std::uint16_t;
constexpr int LANES = 16;    // outputs of one register
constexpr int WIDE = 32;     // outputs of a block in bf16
constexpr int MOST = 8;      // rows whose sums are in registers at once
constexpr int AHEAD = 2048;  // bytes of weights asked for before they are used
constexpr float TOP = 127 * 256 + 127;  // the largest number of two digits of eight bits, each with its sign

// [outputs / 32][inputs / 2][32][2]; the bias may be null. Each `piece` of the inputs has a sum, and then they are added.
struct Dense {
    const bf16 *weight, *bias;
    long inputs, outputs, piece;
};

// Units of 64 bytes hold 8 inputs of 16 outputs, 4 bytes each: in byte i the codes of inputs i (low) and i + 4 (high).
// [outputs / 16][inputs / 8] units; scales and zeros [outputs / 16][groups][16], zeros may be null.
struct Coded {
    const std::uint8_t* codes;
    const bf16* scales;
    const std::int8_t* zeros;
    long inputs, outputs, group;
};

// Rows in 16 bits: two digits, high and low, of each input; for each group a step, and the sum of its numbers.
struct Rounded {
    std::vector<std::int8_t> high, low;
    std::vector<float> step;
    std::vector<std::int32_t> sum;
};

inline __m512 widened(const bf16* x) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)x)), 16));
}

inline void store(bf16* y, __m512 sum, long left) {
    const __mmask16 some = left >= LANES ? 0xffff : left > 0 ? (1u << left) - 1 : 0;
    _mm256_mask_storeu_epi16(y, some, (__m256i)_mm512_cvtneps_pbh(sum));
}

inline __m512i four(const std::int8_t* x) {
    std::int32_t all;
    std::memcpy(&all, x, sizeof all);
    return _mm512_set1_epi32(all);
}

std::vector<float> floats(const bf16* x, long count) {
    std::vector<float> found(count);
    for (long i = 0; i < count; i++) {
        const std::uint32_t bits = (std::uint32_t)x[i] << 16;
        std::memcpy(&found[i], &bits, sizeof bits);
    }
    return found;
}

// 32 outputs of R rows, which are in fp32.
template <int R>
void dense(const Dense& m, const float* x, bf16* y, long block) {
    const bf16* w = m.weight + block * WIDE * m.inputs;
    const __m512i upper = _mm512_set1_epi32((int)0xffff0000);
    __m512 all[R][2];
    for (int r = 0; r < R; r++) all[r][0] = all[r][1] = _mm512_setzero_ps();
    for (long begin = 0; begin < m.inputs; begin += m.piece) {
        const long end = begin + m.piece < m.inputs ? begin + m.piece : m.inputs;
        __m512 sum[R][2];
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) sum[r][0] = sum[r][1] = _mm512_setzero_ps();
        for (long i = begin; i < end; i += 2, w += 2 * WIDE) {
            _mm_prefetch((const char*)w + AHEAD, _MM_HINT_T0);
            _mm_prefetch((const char*)w + AHEAD + 64, _MM_HINT_T0);
            const __m512i left = _mm512_loadu_si512(w), right = _mm512_loadu_si512(w + WIDE);
            const __m512 second[2] = {_mm512_castsi512_ps(_mm512_and_si512(left, upper)),
                                      _mm512_castsi512_ps(_mm512_and_si512(right, upper))};
            const __m512 first[2] = {_mm512_castsi512_ps(_mm512_slli_epi32(left, 16)),
                                     _mm512_castsi512_ps(_mm512_slli_epi32(right, 16))};
#pragma GCC unroll 8
            for (int r = 0; r < R; r++) {
                const __m512 one = _mm512_set1_ps(x[r * m.inputs + i]), two = _mm512_set1_ps(x[r * m.inputs + i + 1]);
                sum[r][0] = _mm512_fmadd_ps(one, first[0], _mm512_fmadd_ps(two, second[0], sum[r][0]));
                sum[r][1] = _mm512_fmadd_ps(one, first[1], _mm512_fmadd_ps(two, second[1], sum[r][1]));
            }
        }
#pragma GCC unroll 8
        for (int r = 0; r < R; r++)
            for (int c = 0; c < 2; c++) all[r][c] = _mm512_add_ps(all[r][c], sum[r][c]);
    }
    const long begin = block * WIDE, left = m.outputs - begin;
    bf16 bias[WIDE] = {};
    if (m.bias) std::memcpy(bias, m.bias + begin, sizeof(bf16) * (left < WIDE ? left : WIDE));
    for (int r = 0; r < R; r++) {
        for (int c = 0; c < 2; c++) {
            if (m.bias) all[r][c] = _mm512_add_ps(all[r][c], widened(bias + c * LANES));
            store(y + r * m.outputs + begin + c * LANES, all[r][c], left - c * LANES);
        }
    }
}

Rounded rounded(const Coded& m, const bf16* x, long rows) {
    const long count = rows * m.inputs, groups = count / m.group;
    Rounded found{std::vector<std::int8_t>(count), std::vector<std::int8_t>(count), std::vector<float>(groups),
                  std::vector<std::int32_t>(groups)};
    for (long g = 0; g < groups; g++) {
        const long begin = g * m.group, end = begin + m.group;
        __m512 most = _mm512_setzero_ps();
        for (long i = begin; i < end; i += LANES) most = _mm512_max_ps(most, _mm512_abs_ps(widened(x + i)));
        const float largest = _mm512_reduce_max_ps(most);
        const __m512 inverse = _mm512_set1_ps(largest > 0 ? TOP / largest : 0.0f);
        __m512i sum = _mm512_setzero_si512();
        for (long i = begin; i < end; i += LANES) {
            const __m512i number = _mm512_cvtps_epi32(_mm512_mul_ps(widened(x + i), inverse));
            const __m512i upper = _mm512_srai_epi32(_mm512_add_epi32(number, _mm512_set1_epi32(128)), 8);
            const __m512i lower = _mm512_sub_epi32(number, _mm512_slli_epi32(upper, 8));
            _mm_storeu_si128((__m128i*)(found.high.data() + i), _mm512_cvtepi32_epi8(upper));
            _mm_storeu_si128((__m128i*)(found.low.data() + i), _mm512_cvtepi32_epi8(lower));
            sum = _mm512_add_epi32(sum, number);
        }
        found.step[g] = largest / TOP;
        found.sum[g] = _mm512_reduce_add_epi32(sum);
    }
    return found;
}

// 16 C outputs of R rows from `row` on: weights (code - zero) scale, in whole numbers but for scales and steps.
template <int R, int C>
void whole(const Coded& m, const Rounded& x, long row, bf16* y, long block) {
    const long groups = m.inputs / m.group, bytes = 8 * m.inputs;
    const std::uint8_t* codes = m.codes + block * bytes;
    const std::int8_t *high = x.high.data() + row * m.inputs, *low = x.low.data() + row * m.inputs;
    const __m512i nibble = _mm512_set1_epi8(15);
    __m512 sum[R][C];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int c = 0; c < C; c++) sum[r][c] = _mm512_setzero_ps();
    for (long g = 0; g < groups; g++) {
        __m512i upper[R][C], lower[R][C];
#pragma GCC unroll 8
        for (int r = 0; r < R; r++)
#pragma GCC unroll 4
            for (int c = 0; c < C; c++) upper[r][c] = lower[r][c] = _mm512_setzero_si512();
        for (long i = g * m.group; i < (g + 1) * m.group; i += 8, codes += 64) {
#pragma GCC unroll 4
            for (int c = 0; c < C; c++) {
                _mm_prefetch((const char*)codes + c * bytes + AHEAD, _MM_HINT_T0);
                const __m512i unit = _mm512_loadu_si512(codes + c * bytes);
                const __m512i first = _mm512_and_si512(unit, nibble);
                const __m512i second = _mm512_and_si512(_mm512_srli_epi16(unit, 4), nibble);
#pragma GCC unroll 8
                for (int r = 0; r < R; r++) {
                    const long at = r * m.inputs + i;
                    upper[r][c] = _mm512_dpbusd_epi32(upper[r][c], first, four(high + at));
                    lower[r][c] = _mm512_dpbusd_epi32(lower[r][c], first, four(low + at));
                    upper[r][c] = _mm512_dpbusd_epi32(upper[r][c], second, four(high + at + 4));
                    lower[r][c] = _mm512_dpbusd_epi32(lower[r][c], second, four(low + at + 4));
                }
            }
        }
#pragma GCC unroll 4
        for (int c = 0; c < C; c++) {
            const long at = ((block + c) * groups + g) * LANES;
            const __m512 scale = widened(m.scales + at);
            const __m512i zero = m.zeros ? _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)(m.zeros + at)))
                                         : _mm512_set1_epi32(8);
#pragma GCC unroll 8
            for (int r = 0; r < R; r++) {
                const long own = (row + r) * groups + g;
                const __m512i offset = _mm512_mullo_epi32(zero, _mm512_set1_epi32(x.sum[own]));
                const __m512i both = _mm512_add_epi32(_mm512_slli_epi32(upper[r][c], 8), lower[r][c]);
                const __m512 part = _mm512_cvtepi32_ps(_mm512_sub_epi32(both, offset));
                sum[r][c] = _mm512_fmadd_ps(part, _mm512_mul_ps(scale, _mm512_set1_ps(x.step[own])), sum[r][c]);
            }
        }
    }
    for (int r = 0; r < R; r++)
        for (int c = 0; c < C; c++) store(y + (row + r) * m.outputs + (block + c) * LANES, sum[r][c], LANES);
}

// The blocks [begin, end) of R rows: as many at once as there are registers for.
template <int R>
void several(const Coded& m, const Rounded& x, long row, bf16* y, long begin, long end) {
    constexpr int C = R <= 2 ? 4 : R <= 4 ? 2 : 1;
    for (; begin + C <= end; begin += C) whole<R, C>(m, x, row, y, begin);
    for (; begin < end; begin++) whole<R, 1>(m, x, row, y, begin);
}

// 16 outputs of R rows, which are in fp32: weights table[code] scale.
template <int R>
void leveled(const Coded& m, const float* x, const float* table, bf16* y, long block) {
    const long groups = m.inputs / m.group;
    const std::uint8_t* codes = m.codes + block * 8 * m.inputs;
    const __m512 levels = _mm512_loadu_ps(table);
    __m512 sum[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) sum[r] = _mm512_setzero_ps();
    for (long g = 0; g < groups; g++) {
        __m512 part[R];
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) part[r] = _mm512_setzero_ps();
        for (long i = g * m.group; i < (g + 1) * m.group; i += 8, codes += 64) {
            const __m512i unit = _mm512_loadu_si512(codes);
#pragma GCC unroll 8
            for (int n = 0; n < 8; n++) {
                // of an index only the lowest four bits count
                const __m512 w = _mm512_permutexvar_ps(_mm512_srli_epi32(unit, 4 * n), levels);
                const long at = i + n / 2 + 4 * (n % 2);
#pragma GCC unroll 8
                for (int r = 0; r < R; r++)
                    part[r] = _mm512_fmadd_ps(w, _mm512_set1_ps(x[r * m.inputs + at]), part[r]);
            }
        }
        const __m512 scale = widened(m.scales + (block * groups + g) * LANES);
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) sum[r] = _mm512_fmadd_ps(part[r], scale, sum[r]);
    }
    for (int r = 0; r < R; r++) store(y + r * m.outputs + block * LANES, sum[r], LANES);
}

inline float single(const float* x) { return *x; }
inline float single(const bf16* x) {
    const std::uint32_t bits = (std::uint32_t)*x << 16;
    float found;
    std::memcpy(&found, &bits, sizeof found);
    return found;
}
inline __m512 many(const float* x) { return _mm512_loadu_ps(x); }
inline __m512 many(const bf16* x) { return widened(x); }
inline void put(float* y, __m512 values, long left) {
    _mm512_mask_storeu_ps(y, left >= LANES ? 0xffff : (1u << left) - 1, values);
}
inline void put(bf16* y, __m512 values, long left) { store(y, values, left); }

// The sum of squares as torch adds it up: L values at once, in four rows that are begun again every 16 times.
template <int L, class T>
float squares(const T* x, long width) {
    float all[4][L] = {}, some[4][L] = {};
    const long rounds = width / (4 * L);
    for (long i = 0; i < rounds; i++) {
        for (int n = 0; n < 4; n++)
            for (int l = 0; l < L; l++) {
                const float value = single(x + (4 * i + n) * L + l);
                some[n][l] += value * value;
            }
        if (i % 16 == 15)
            for (int n = 0; n < 4; n++)
                for (int l = 0; l < L; l++) all[n][l] += some[n][l], some[n][l] = 0;
    }
    for (int n = 0; n < 4; n++)
        for (int l = 0; l < L; l++) some[n][l] += all[n][l];
    long done = 4 * L * rounds;
    for (; done + L <= width; done += L)
        for (int l = 0; l < L; l++) some[0][l] += single(x + done + l) * single(x + done + l);
    for (int n = 1; n < 4; n++)
        for (int l = 0; l < L; l++) some[0][l] += some[n][l];
    float sum = 0;
    for (; done < width; done++) sum += single(x + done) * single(x + done);
    for (int l = 0; l < L; l++) sum += some[0][l];
    return sum;
}

template <class T>
void norm(const T* x, const T* gain, T* y, long rows, long width, float eps, int lanes) {
    for (const T* end = x + rows * width; x < end; x += width, y += width) {
        const float sum = lanes == 16 ? squares<16>(x, width) : squares<8>(x, width);
        const float factor = 1 / std::sqrt(sum / width + eps);
        long i = 0;
        for (; i + LANES <= width; i += LANES)
            put(y + i, _mm512_mul_ps(_mm512_mul_ps(many(x + i), _mm512_set1_ps(factor)), many(gain + i)), LANES);
        for (; i < width; i++) put(y + i, _mm512_set1_ps(single(x + i) * factor * single(gain + i)), 1);
    }
}

// `work` of each piece of `step` blocks, and in it of at most MOST rows after the others, so that the piece stays near.
template <class Work>
void shared(long blocks, long step, long rows, int threads, Work work) {
    const long pieces = (blocks + step - 1) / step;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (long piece = 0; piece < pieces; piece++) {
        const long begin = piece * step, end = begin + step < blocks ? begin + step : blocks;
        for (long row = 0; row < rows; row += MOST) work(begin, end, row, rows - row < MOST ? rows - row : MOST);
    }
}

}  // namespace

#define FOR_ROWS(count, FORM)   \
    switch (count) {            \
        case 1: FORM(1); break; \
        case 2: FORM(2); break; \
        case 3: FORM(3); break; \
        case 4: FORM(4); break; \
        case 5: FORM(5); break; \
        case 6: FORM(6); break; \
        case 7: FORM(7); break; \
        default: FORM(8);       \
    }
#define DENSE(R) dense<R>(m, wide.data() + row * inputs, y + row * outputs, begin)
#define WHOLE(R) several<R>(m, digits, row, y, begin, end)
#define LEVELED(R) leveled<R>(m, wide.data() + row * inputs, table, y + row * outputs, begin)

extern "C" void dense_product(const bf16* x, const bf16* weight, const bf16* bias, bf16* y, long rows, long inputs,
                              long outputs, long piece, int threads) {
    const Dense m{weight, bias, inputs, outputs, piece};
    const std::vector<float> wide = floats(x, rows * inputs);
    shared((outputs + WIDE - 1) / WIDE, 1, rows, threads,
           [&](long begin, long, long row, long count) { FOR_ROWS(count, DENSE) });
}

// Weights (code - zero) scale where `table` is null, else table[code] scale.
extern "C" void coded_product(const bf16* x, const std::uint8_t* codes, const bf16* scales, const std::int8_t* zeros,
                              const float* table, bf16* y, long rows, long inputs, long outputs, long group,
                              int threads) {
    const Coded m{codes, scales, zeros, inputs, outputs, group};
    if (table) {
        const std::vector<float> wide = floats(x, rows * inputs);
        shared(outputs / LANES, 1, rows, threads,
               [&](long begin, long, long row, long count) { FOR_ROWS(count, LEVELED) });
    } else {
        const Rounded digits = rounded(m, x, rows);
        shared(outputs / LANES, 4, rows, threads,
               [&](long begin, long end, long row, long count) { FOR_ROWS(count, WHOLE) });
    }
}

// x / sqrt(mean of squares + eps) gain, of rows in fp32, or in bf16 where `narrow`.
extern "C" void norm_rows(const void* x, const void* gain, void* y, long rows, long width, float eps, int lanes,
                          int narrow) {
    if (narrow)
        norm((const bf16*)x, (const bf16*)gain, (bf16*)y, rows, width, eps, lanes);
    else
        norm((const float*)x, (const float*)gain, (float*)y, rows, width, eps, lanes);
}
