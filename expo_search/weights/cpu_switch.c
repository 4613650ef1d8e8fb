/* theta(alpha) for the bfloat16 elements of one weight and the sum of their fingerprint, in one pass over memory.
 *
 * Compiled on first use by cpu_kernel.py with -ffp-contract=off: subtract, multiply and add must be three separately
 * rounded float32 operations, as formula.py defines them. fingerprint.py defines the sums. The torch versions
 * there are the reference that this must equal to the bit.
 */
#include <stdint.h>
#include <string.h>
#ifdef __SSE2__
#include <immintrin.h>
#endif

enum { STRIP = 256 }; /* elements that go through arithmetic, sum and store at a time: few enough to overlap */

/* Where to write: as bfloat16, or, where an engine multiplies in float32, the same numbers widened. */
struct out {
    uint16_t *narrow;
    uint32_t *wide;
};

static inline float as_float(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* theta of one element whose sources are the upper halves of two float32; in the upper half, rounded to nearest even.
 * Sources are finite, so that no NaN can arise, which would round to infinity here. */
static inline uint32_t theta(uint32_t aligned, uint32_t sft, float alpha) {
    float a = as_float(aligned);
    float delta = a - as_float(sft);
    float step = delta * alpha;
    float value = step + a;
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits + 0x7FFFu + ((bits >> 16) & 1u);
}

/* Two elements at a time, as the lower and the upper half of a word; both stay in their lane of a vector. */
static void extrapolate(uint16_t *restrict out, const uint16_t *restrict aligned, const uint16_t *restrict sft,
                        float alpha, int64_t n) {
    if (alpha == 0.0f) {
        memcpy(out, aligned, (size_t)n * sizeof *out);
        return;
    }
    for (int64_t i = 0; i < n / 2; i++) {
        uint32_t a, s;
        memcpy(&a, aligned + 2 * i, sizeof a);
        memcpy(&s, sft + 2 * i, sizeof s);
        uint32_t even = theta(a << 16, s << 16, alpha), odd = theta(a & 0xFFFF0000u, s & 0xFFFF0000u, alpha);
        uint32_t both = even >> 16 | (odd & 0xFFFF0000u);
        memcpy(out + 2 * i, &both, sizeof both);
    }
    if (n % 2)
        out[n - 1] = (uint16_t)(theta((uint32_t)aligned[n - 1] << 16, (uint32_t)sft[n - 1] << 16, alpha) >> 16);
}

static uint64_t weighted_sum(const uint16_t *restrict halves, const int32_t *restrict keys, int64_t n_words) {
    uint64_t sum = 0;
    for (int64_t i = 0; i < n_words; i++) {
        int32_t word;
        memcpy(&word, halves + 2 * i, sizeof word);
        sum += (uint64_t)((int64_t)keys[i] * word);
    }
    return sum;
}

/* A copy that leaves the caches alone, where the processor has one: what is written is not read again soon, and its
 * old content need not be fetched first. */
static inline void send(uint16_t *restrict out, const uint16_t *restrict in, int64_t n) {
    int64_t done = 0;
#ifdef __AVX512F__
    if ((uintptr_t)out % 64 == 0) /* a whole cache line by one instruction */
        for (; done + 32 <= n; done += 32)
            _mm512_stream_si512((__m512i *)(out + done), _mm512_loadu_si512(in + done));
#endif
#ifdef __SSE2__
    if ((uintptr_t)out % 16 == 0)
        for (; done + 8 <= n; done += 8)
            _mm_stream_si128((__m128i *)(out + done), _mm_loadu_si128((const __m128i *)(in + done)));
#endif
    memcpy(out + done, in + done, (size_t)(n - done) * sizeof *out);
}

/* The same, widened to float32: a bfloat16 is the upper half of one. */
static inline void send_wide(uint32_t *restrict out, const uint16_t *restrict in, int64_t n) {
    uint32_t strip[STRIP] __attribute__((aligned(64)));
    for (int64_t i = 0; i < n; i++)
        strip[i] = (uint32_t)in[i] << 16;
    send((uint16_t *)out, (const uint16_t *)strip, 2 * n);
}

/* m elements from `at` on; an odd last one is padded with zero bits to a word. */
static inline uint64_t write_strip(struct out out, const uint16_t *aligned, const uint16_t *sft, int64_t at, int64_t m,
                                   float alpha, const int32_t *word_keys) {
    uint16_t strip[STRIP] __attribute__((aligned(64)));
    extrapolate(strip, aligned + at, sft + at, alpha, m);
    if (m % 2)
        strip[m] = 0;
    if (out.wide)
        send_wide(out.wide + at, strip, m);
    else
        send(out.narrow + at, strip, m);
    return weighted_sum(strip, word_keys, (m + 1) / 2);
}

/* Elements [start, stop): one block of the fingerprint, the last may be shorter. */
static uint64_t write_block(struct out out, const uint16_t *aligned, const uint16_t *sft, int64_t start, int64_t stop,
                            float alpha, const int32_t *word_keys) {
    uint64_t sum = 0;
    int64_t at = start;
    for (; at + STRIP <= stop; at += STRIP) /* a constant count, which compilers unroll */
        sum += write_strip(out, aligned, sft, at, STRIP, alpha, word_keys + (at - start) / 2);
    if (at < stop)
        sum += write_strip(out, aligned, sft, at, stop - at, alpha, word_keys + (at - start) / 2);
    return sum;
}

/* Works off chunks of blocks of one weight of n elements until there are none; several threads share `next`, the first
 * block that nobody took yet. Returns this thread's share of the fingerprint. alpha == 0 copies aligned. */
uint64_t expo_switch_bf16(const uint16_t *aligned, const uint16_t *sft, uint16_t *narrow, uint32_t *wide, int64_t n,
                          float alpha, const int32_t *word_keys, const int64_t *block_keys, int64_t block_words,
                          int64_t chunk, int64_t *next) {
    struct out out = {narrow, wide};
    int64_t length = 2 * block_words, n_blocks = (n + length - 1) / length;
    uint64_t sum = 0;
    for (;;) {
        int64_t first = __atomic_fetch_add(next, chunk, __ATOMIC_RELAXED);
        if (first >= n_blocks)
            break;
        for (int64_t block = first; block < first + chunk && block < n_blocks; block++) {
            int64_t start = block * length, stop = start + length < n ? start + length : n;
            sum += (uint64_t)block_keys[block] * write_block(out, aligned, sft, start, stop, alpha, word_keys);
        }
    }
#ifdef __SSE2__
    _mm_sfence();
#endif
    return sum;
}
