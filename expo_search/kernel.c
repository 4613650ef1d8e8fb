/* theta(alpha) for many bfloat16 weights and the sums of their fingerprints, in one pass over memory.
 *
 * Compiled on first use by kernel.py with -ffp-contract=off: subtract, multiply and add must be three separately
 * rounded float32 operations, as extrapolate.py defines them. fingerprint.py defines the sums. The torch versions
 * there are the reference that this must equal to the bit.
 */
#include <stdint.h>
#include <string.h>
#ifdef __SSE2__
#include <immintrin.h>
#endif

enum {
    STRIP = 256,      /* elements that go through arithmetic, sum and store at a time: few enough to overlap */
    PANEL = 64,       /* rows of a packed block at most */
    BLOCK = 32,       /* columns of a packed block */
    SPAN = 8 * BLOCK, /* columns of a panel that are computed before they are packed: 64 rows stay in the caches */
    AHEAD = 8         /* rows that are fetched before their turn */
};

/* One weight: n elements in load layout, the first of them element `start` of all tasks together. It is written as it
 * is (plain), or in oneDNN's blocks (packed; see packed.py), or both. A packed weight has an even number of columns. */
struct task {
    const uint16_t *aligned, *sft;
    uint16_t *plain, *packed;
    int64_t n, start, columns, panel;
};

struct keys {
    const int32_t *words;
    const int64_t *blocks;
    int64_t block_words, log2_block_words;
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

/* The share of words [first, first + n_words) of a weight in its fingerprint. */
static uint64_t fingerprint(const uint16_t *halves, int64_t first, int64_t n_words, const struct keys *keys) {
    uint64_t sum = 0;
    while (n_words > 0) {
        int64_t block = first >> keys->log2_block_words, at = first & (keys->block_words - 1);
        int64_t m = keys->block_words - at < n_words ? keys->block_words - at : n_words;
        sum += (uint64_t)keys->blocks[block] * weighted_sum(halves, keys->words + at, m);
        halves += 2 * m, first += m, n_words -= m;
    }
    return sum;
}

/* A copy that leaves the caches alone, where the processor has one: what is written is not read again soon, and its
 * old content need not be fetched first. */
static void send(uint16_t *restrict out, const uint16_t *restrict in, int64_t n) {
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

/* m elements of a plain weight from `at` on; an odd last one is padded with zero bits to a word. */
static inline uint64_t write_strip(const struct task *t, int64_t at, int64_t m, float alpha, const int32_t *word_keys) {
    uint16_t strip[STRIP] __attribute__((aligned(64)));
    extrapolate(strip, t->aligned + at, t->sft + at, alpha, m);
    if (m % 2)
        strip[m] = 0;
    send(t->plain + at, strip, m);
    return weighted_sum(strip, word_keys, (m + 1) / 2);
}

/* Elements [start, stop) of a plain weight: one block of the fingerprint, the last may be shorter. */
static uint64_t write_plain(const struct task *t, int64_t start, int64_t stop, float alpha, const struct keys *keys) {
    uint64_t sum = 0;
    int64_t at = start;
    for (; at + STRIP <= stop; at += STRIP) /* a constant count, which compilers unroll */
        sum += write_strip(t, at, STRIP, alpha, keys->words + (at - start) / 2);
    if (at < stop)
        sum += write_strip(t, at, stop - at, alpha, keys->words + (at - start) / 2);
    return sum * (uint64_t)keys->blocks[start / 2 / keys->block_words];
}

/* Asks for sources that are needed soon: the rows of a panel are too many streams for the processor to foresee. They go
 * to the larger cache, since rows whose length is a power of two share a few places of the smallest. */
static void fetch(const struct task *t, int64_t at, int64_t m) {
    for (int64_t i = at; i < at + m && i < t->n; i += BLOCK) {
        __builtin_prefetch(t->aligned + i, 0, 2);
        __builtin_prefetch(t->sft + i, 0, 2);
    }
}

#ifdef __AVX512F__
/* One block as below, sixteen words of sixteen rows at a time: in registers, and out in whole cache lines. */
static void pack_lines(uint16_t *restrict out, const uint16_t *restrict rows, int64_t stride, int64_t panel) {
    for (int64_t r = 0; r < panel; r += 16) {
        __m512i w[16], t[16];
        for (int i = 0; i < 16; i++)
            w[i] = _mm512_loadu_si512(rows + (r + i) * stride);
        for (int i = 0; i < 16; i += 2) {
            t[i] = _mm512_unpacklo_epi32(w[i], w[i + 1]);
            t[i + 1] = _mm512_unpackhi_epi32(w[i], w[i + 1]);
        }
        for (int i = 0; i < 16; i += 4)
            for (int j = 0; j < 2; j++) {
                w[i + 2 * j] = _mm512_unpacklo_epi64(t[i + j], t[i + 2 + j]);
                w[i + 2 * j + 1] = _mm512_unpackhi_epi64(t[i + j], t[i + 2 + j]);
            }
        /* quarter q of w[4 i + j] now holds the pair 4 q + j of the rows 4 i to 4 i + 3 */
        for (int j = 0; j < 4; j++) {
            __m512i even[2], odd[2];
            for (int i = 0; i < 2; i++) {
                even[i] = _mm512_shuffle_i32x4(w[8 * i + j], w[8 * i + 4 + j], 0x88);
                odd[i] = _mm512_shuffle_i32x4(w[8 * i + j], w[8 * i + 4 + j], 0xDD);
            }
            uint16_t *to = out + 2 * (j * panel + r);
            _mm512_stream_si512((__m512i *)to, _mm512_shuffle_i32x4(even[0], even[1], 0x88));
            _mm512_stream_si512((__m512i *)(to + 8 * panel), _mm512_shuffle_i32x4(odd[0], odd[1], 0x88));
            _mm512_stream_si512((__m512i *)(to + 16 * panel), _mm512_shuffle_i32x4(even[0], even[1], 0xDD));
            _mm512_stream_si512((__m512i *)(to + 24 * panel), _mm512_shuffle_i32x4(odd[0], odd[1], 0xDD));
        }
    }
}
#endif

/* One block of a packed weight from `panel` rows of 32 columns: pairs of columns, and in each every row's pair. */
static void pack(uint16_t *restrict out, const uint16_t *restrict rows, int64_t stride, int64_t panel) {
#ifdef __AVX512F__
    if ((uintptr_t)out % 64 == 0) {
        pack_lines(out, rows, stride, panel);
        return;
    }
#endif
    uint32_t block[BLOCK / 2 * PANEL] __attribute__((aligned(64)));
#ifdef __SSE2__
    for (int64_t pair = 0; pair < BLOCK / 2; pair += 4)
        for (int64_t r = 0; r < panel; r += 4) { /* the transpose of four words of four rows */
            __m128i w[4], low[2], high[2];
            for (int i = 0; i < 4; i++)
                w[i] = _mm_loadu_si128((const __m128i *)(rows + (r + i) * stride + 2 * pair));
            for (int i = 0; i < 2; i++) {
                low[i] = _mm_unpacklo_epi32(w[2 * i], w[2 * i + 1]);
                high[i] = _mm_unpackhi_epi32(w[2 * i], w[2 * i + 1]);
            }
            __m128i *to = (__m128i *)(block + pair * panel + r);
            _mm_store_si128(to, _mm_unpacklo_epi64(low[0], low[1]));
            _mm_store_si128(to + panel / 4, _mm_unpackhi_epi64(low[0], low[1]));
            _mm_store_si128(to + panel / 2, _mm_unpacklo_epi64(high[0], high[1]));
            _mm_store_si128(to + panel / 4 * 3, _mm_unpackhi_epi64(high[0], high[1]));
        }
#else
    for (int64_t r = 0; r < panel; r++)
        for (int64_t pair = 0; pair < BLOCK / 2; pair++)
            memcpy(&block[pair * panel + r], rows + r * stride + 2 * pair, sizeof *block);
#endif
    send(out, (const uint16_t *)block, BLOCK * panel);
}

/* The rows [first, first + panel) of a packed weight; rows and columns beyond its last are zero. */
static uint64_t write_panel(const struct task *t, int64_t first, float alpha, const struct keys *keys) {
    enum { STRIDE = SPAN + BLOCK }; /* not a power of two: the rows of a block must not share the cache's sets */
    uint16_t rows[PANEL * STRIDE] __attribute__((aligned(64)));
    int64_t n_rows = t->n / t->columns - first < t->panel ? t->n / t->columns - first : t->panel;
    int64_t blocks_of_row = (t->columns + BLOCK - 1) / BLOCK;
    uint16_t *out = t->packed + first * blocks_of_row * BLOCK;
    uint64_t sum = 0;
    if (n_rows < t->panel)
        memset(rows, 0, sizeof rows);
    for (int64_t column = 0; column < t->columns; column += SPAN) {
        int64_t m = t->columns - column < SPAN ? t->columns - column : SPAN;
        for (int64_t r = 0; r < n_rows; r++) {
            int64_t at = (first + r) * t->columns + column;
            uint16_t *row = rows + r * STRIDE;
            if (m == SPAN) /* a constant count, which compilers unroll */
                extrapolate(row, t->aligned + at, t->sft + at, alpha, SPAN);
            else
                extrapolate(row, t->aligned + at, t->sft + at, alpha, m);
            if (r + AHEAD < n_rows)
                fetch(t, at + AHEAD * t->columns, m);
            else /* the first rows of the next span */
                fetch(t, at + (AHEAD - n_rows) * t->columns + SPAN, m);
            if (m % BLOCK)
                memset(row + m, 0, (size_t)(BLOCK - m % BLOCK) * sizeof *row);
            sum += fingerprint(row, at / 2, m / 2, keys);
            if (t->plain)
                send(t->plain + at, row, m);
        }
        for (int64_t c = 0; c < m; c += BLOCK, out += BLOCK * t->panel)
            pack(out, rows + c, STRIDE, t->panel);
    }
    return sum;
}

/* Works off chunks of all tasks' elements until there are none; several threads share `next`, the first element that
 * nobody took yet. A thread does the pieces (fingerprint blocks, or panels of rows) that begin in its chunks, and adds
 * each weight's part of its fingerprint to its own `sums`, one per task. alpha == 0 copies aligned. */
void expo_switch_bf16(const struct task *tasks, int64_t n_tasks, float alpha, const int32_t *word_keys,
                      const int64_t *block_keys, int64_t block_words, int64_t chunk, int64_t *next, uint64_t *sums) {
    struct keys keys = {word_keys, block_keys, block_words, __builtin_ctzll((uint64_t)block_words)};
    int64_t total = n_tasks ? tasks[n_tasks - 1].start + tasks[n_tasks - 1].n : 0, here = 0;
    for (;;) {
        int64_t low = __atomic_fetch_add(next, chunk, __ATOMIC_RELAXED), high = low + chunk;
        if (low >= total)
            break;
        while (tasks[here].start + tasks[here].n <= low)
            here++;
        for (int64_t i = here; i < n_tasks && tasks[i].start < high; i++) {
            const struct task *t = &tasks[i];
            int64_t piece = t->packed ? t->panel * t->columns : 2 * block_words;
            int64_t from = low > t->start ? low - t->start : 0, to = high - t->start < t->n ? high - t->start : t->n;
            for (int64_t at = (from + piece - 1) / piece * piece; at < to; at += piece) {
                if (t->packed)
                    sums[i] += write_panel(t, at / t->columns, alpha, &keys);
                else
                    sums[i] += write_plain(t, at, at + piece < t->n ? at + piece : t->n, alpha, &keys);
            }
        }
    }
#ifdef __SSE2__
    _mm_sfence();
#endif
}
