// What stands between the products of a decoder's training step, forwards and backwards, each in one pass over memory.
//
// All in fp32. Rows are shared among threads; what is summed over rows is summed within blocks of BLOCK rows, which are
// then added in order, so that the result is the same on any number of threads.

#include <cmath>
#include <cstdint>
#include <cstring>

namespace {

constexpr long BLOCK = 64;
constexpr std::int64_t NONE = -100;  // the target of a token that has none

inline long blocks(long rows) { return (rows + BLOCK - 1) / BLOCK; }

// e^x, within 2 units in the last place; x is held within what fp32 can say of it. Range reduction as in Cephes' expf.
inline float exponential(float x) {
    x = x < -87.0f ? -87.0f : x;
    x = x > 88.0f ? 88.0f : x;
    const float shift = 12582912.0f;  // 1.5 x 2^23: adding it rounds to a whole number
    const float n = (x * 1.44269504f + shift) - shift;
    const float r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
    float y = 1.9875691500e-4f;
    y = y * r + 1.3981999507e-3f;
    y = y * r + 8.3334519073e-3f;
    y = y * r + 4.1665795894e-2f;
    y = y * r + 1.6666665459e-1f;
    y = y * r + 5.0000001201e-1f;
    y = y * r * r + r + 1.0f;
    const std::int32_t bits = ((std::int32_t)n + 127) << 23;
    float power;
    std::memcpy(&power, &bits, sizeof power);
    return y * power;
}

inline float inverse_rms(const float* x, long width, float eps) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (long i = 0; i < width; i++) sum += x[i] * x[i];
    return 1 / std::sqrt(sum / width + eps);
}

// The gradient of x in y = x factor gain, factor = 1 / rms(x); what the gain's is, is added to `gain_sum`.
inline void norm_gradient(const float* dy, const float* x, const float* gain, float factor, long width, float* dx,
                          float* gain_sum) {
    float dot = 0;
#pragma omp simd reduction(+ : dot)
    for (long i = 0; i < width; i++) dot += dy[i] * gain[i] * x[i];
    const float pull = dot * factor * factor * factor / width;
#pragma omp simd
    for (long i = 0; i < width; i++) {
        gain_sum[i] += dy[i] * x[i] * factor;
        dx[i] = factor * dy[i] * gain[i] - pull * x[i];
    }
}

template <class Work>
void each_block(long rows, int threads, Work work) {
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (long block = 0; block < blocks(rows); block++) {
        const long begin = block * BLOCK;
        work(block, begin, begin + BLOCK < rows ? begin + BLOCK : rows);
    }
}

// The heads of a token: H queries, K keys, K values and, where keys take from the token before, K more, of E numbers.
struct Heads {
    long tokens, length, queries, keys, width;
    bool shifted;
    long rows() const { return queries + keys * (shifted ? 3 : 2); }
};

// What tells positions: cosines and sines [T, E] of one sequence, or of each; null where heads do not turn.
struct Turn {
    const float *cos, *sin;
    long stride;
    long at(const Heads& h, long token) const {
        return token / h.length * stride + token % h.length * h.width;
    }
};

inline bool takes(const Heads& h, const std::uint8_t* begins, long token) {
    return h.shifted && token % h.length && !(begins && begins[token]);
}

// A key as it is before its norm, with what the token before gives it.
inline void key_of(const Heads& h, const float* qkv, const std::uint8_t* begins, long token, long key, float* found) {
    const float* own = qkv + (token * h.rows() + h.queries + key) * h.width;
    std::memcpy(found, own, h.width * sizeof(float));
    if (!takes(h, begins, token)) return;
    const float* given = own + (2 * h.keys - h.rows()) * h.width;
#pragma omp simd
    for (long i = 0; i < h.width; i++) found[i] += given[i];
}

inline void turned(const Turn& turn, long at, const float* x, long width, float* y) {
    const long half = width / 2;
    const float *cos = turn.cos + at, *sin = turn.sin + at;
#pragma omp simd
    for (long i = 0; i < half; i++) {
        y[i] = x[i] * cos[i] + x[i + half] * sin[i];
        y[i + half] = x[i + half] * cos[i + half] + x[i] * sin[i + half];
    }
}

inline void turned_back(const Turn& turn, long at, const float* dy, long width, float* dx) {
    const long half = width / 2;
    const float *cos = turn.cos + at, *sin = turn.sin + at;
#pragma omp simd
    for (long i = 0; i < half; i++) {
        dx[i] = dy[i] * cos[i] + dy[i + half] * sin[i + half];
        dx[i + half] = dy[i + half] * cos[i + half] + dy[i] * sin[i];
    }
}

constexpr long WIDEST = 1024;  // numbers of a head

}  // namespace

// y = x / sqrt(mean of squares + eps) gain; `factors` are those of the rows.
extern "C" void norm_forward(const float* x, const float* gain, float* y, float* factors, long rows, long width,
                             float eps, int threads) {
    each_block(rows, threads, [=](long, long begin, long end) {
        for (long row = begin; row < end; row++) {
            const float* from = x + row * width;
            float* to = y + row * width;
            const float factor = factors[row] = inverse_rms(from, width, eps);
#pragma omp simd
            for (long i = 0; i < width; i++) to[i] = from[i] * factor * gain[i];
        }
    });
}

// `sums` [blocks, width], which are 0, get the gain's gradient of each block of rows.
extern "C" void norm_backward(const float* dy, const float* x, const float* gain, const float* factors, float* dx,
                              float* sums, long rows, long width, int threads) {
    each_block(rows, threads, [=](long block, long begin, long end) {
        for (long row = begin; row < end; row++)
            norm_gradient(dy + row * width, x + row * width, gain, factors[row], width, dx + row * width,
                          sums + block * width);
    });
}

// Queries, keys and values as attention reads them: keys with what the token before gives, normed, then turned.
// Gains are both null where there are no norms; `factors` [tokens, H + K] are kept for the way back.
extern "C" void heads_forward(const float* qkv, const float* q_gain, const float* k_gain, const float* cos,
                              const float* sin, const std::uint8_t* begins, float* q, float* k, float* v,
                              float* factors, long tokens, long length, long queries, long keys, long width,
                              long stride, int shifted, float eps, int threads) {
    const Heads h{tokens, length, queries, keys, width, (bool)shifted};
    const Turn turn{cos, sin, stride};
    each_block(tokens, threads, [=](long, long begin, long end) {
        float raw[WIDEST];
        for (long token = begin; token < end; token++) {
            for (long head = 0; head < queries + keys; head++) {
                const bool query = head < queries;
                if (query)
                    std::memcpy(raw, qkv + (token * h.rows() + head) * width, width * sizeof(float));
                else
                    key_of(h, qkv, begins, token, head - queries, raw);
                if (q_gain) {
                    const float* gain = query ? q_gain : k_gain;
                    const float factor = factors[token * (queries + keys) + head] = inverse_rms(raw, width, eps);
#pragma omp simd
                    for (long i = 0; i < width; i++) raw[i] *= factor * gain[i];
                }
                float* to = (query ? q + (token * queries + head) * width : k + (token * keys + head - queries) * width);
                if (cos)
                    turned(turn, turn.at(h, token), raw, width, to);
                else
                    std::memcpy(to, raw, width * sizeof(float));
            }
            std::memcpy(v + token * keys * width, qkv + (token * h.rows() + queries + keys) * width,
                        keys * width * sizeof(float));
        }
    });
}

// `sums` [blocks, 2, width], which are 0, get the gradients of both gains.
extern "C" void heads_backward(const float* dq, const float* dk, const float* dv, const float* qkv,
                               const float* q_gain, const float* k_gain, const float* cos, const float* sin,
                               const std::uint8_t* begins, const float* factors, float* dqkv, float* sums, long tokens,
                               long length, long queries, long keys, long width, long stride, int shifted,
                               int threads) {
    const Heads h{tokens, length, queries, keys, width, (bool)shifted};
    const Turn turn{cos, sin, stride};
    const std::size_t bytes = keys * width * sizeof(float);
    each_block(tokens, threads, [=](long block, long begin, long end) {
        float raw[WIDEST], given[WIDEST];
        for (long token = begin; token < end; token++) {
            float* to = dqkv + token * h.rows() * width;
            for (long head = 0; head < queries + keys; head++) {
                const bool query = head < queries;
                const float* from = query ? dq + (token * queries + head) * width
                                          : dk + (token * keys + head - queries) * width;
                if (cos)
                    turned_back(turn, turn.at(h, token), from, width, given);
                else
                    std::memcpy(given, from, width * sizeof(float));
                if (!q_gain) {
                    std::memcpy(to + head * width, given, width * sizeof(float));
                    continue;
                }
                if (query)
                    std::memcpy(raw, qkv + (token * h.rows() + head) * width, width * sizeof(float));
                else
                    key_of(h, qkv, begins, token, head - queries, raw);
                norm_gradient(given, raw, query ? q_gain : k_gain, factors[token * (queries + keys) + head], width,
                              to + head * width, sums + (2 * block + !query) * width);
            }
            std::memcpy(to + (queries + keys) * width, dv + token * keys * width, bytes);
            if (!shifted) continue;
            const long last = (queries + 2 * keys) * width;  // what is given to the next token
            if (token % length == length - 1) std::memset(to + last, 0, bytes);
            if (token % length == 0) continue;
            float* before = to + last - h.rows() * width;
            if (takes(h, begins, token))
                std::memcpy(before, to + queries * width, bytes);
            else
                std::memset(before, 0, bytes);
        }
    });
}

// y = silu(gate) up, of rows that hold `width` gates and then as many ups.
extern "C" void gate_forward(const float* x, float* y, long rows, long width, int threads) {
    each_block(rows, threads, [=](long, long begin, long end) {
        for (long row = begin; row < end; row++) {
            const float *gate = x + 2 * row * width, *up = gate + width;
            float* to = y + row * width;
#pragma omp simd
            for (long i = 0; i < width; i++) to[i] = gate[i] / (1 + exponential(-gate[i])) * up[i];
        }
    });
}

extern "C" void gate_backward(const float* dy, const float* x, float* dx, long rows, long width, int threads) {
    each_block(rows, threads, [=](long, long begin, long end) {
        for (long row = begin; row < end; row++) {
            const float *gate = x + 2 * row * width, *up = gate + width, *from = dy + row * width;
            float *to_gate = dx + 2 * row * width, *to_up = to_gate + width;
#pragma omp simd
            for (long i = 0; i < width; i++) {
                const float open = 1 / (1 + exponential(-gate[i]));
                to_up[i] = from[i] * gate[i] * open;
                to_gate[i] = from[i] * up[i] * open * (1 + gate[i] * (1 - open));
            }
        }
    });
}

// Cross-entropy in nats of each row; logits become its gradient. Rows without a target have neither. How many targets
// are no word is what is given back.
extern "C" long cross_entropy(float* logits, const std::int64_t* targets, float* nats, long rows, long words,
                              int threads) {
    long wrong = 0;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1) reduction(+ : wrong)
    for (long row = 0; row < rows; row++) {
        float* l = logits + row * words;
        const std::int64_t target = targets[row];
        if (target < 0 || target >= words) {
            wrong += target != NONE;
            std::memset(l, 0, words * sizeof(float));
            nats[row] = 0;
            continue;
        }
        float most = l[0], sum = 0;
#pragma omp simd reduction(max : most)
        for (long i = 0; i < words; i++) most = l[i] > most ? l[i] : most;
        const float own = l[target];
#pragma omp simd reduction(+ : sum)
        for (long i = 0; i < words; i++) sum += l[i] = exponential(l[i] - most);
        const float share = 1 / sum;
#pragma omp simd
        for (long i = 0; i < words; i++) l[i] *= share;
        l[target] -= 1;
        nats[row] = std::log(sum) + most - own;
    }
    return wrong;
}
