/* theta(alpha) for bfloat16 tensors and the sums of its fingerprint, in one pass over memory.
 *
 * Compiled on first use by kernel.py with -ffp-contract=off: subtract, multiply and add must be three separately
 * rounded float32 operations, as extrapolate.py defines them. fingerprint.py defines the sums. The torch versions
 * there are the reference that this must equal to the bit.
 */
#include <stdint.h>
#include <string.h>

enum { STRIP = 2048 }; /* 32-bit words whose output is hashed while it is still in the first-level cache */

static inline float widen(uint16_t half) {
    uint32_t bits = (uint32_t)half << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline uint16_t round_to_even(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    uint32_t rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
    return (bits & 0x7FFFFFFFu) > 0x7F800000u ? 0x7FC0u : (uint16_t)rounded;
}

static void extrapolate(uint16_t *restrict out, const uint16_t *restrict aligned, const uint16_t *restrict sft,
                        float alpha, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        float a = widen(aligned[i]);
        float delta = a - widen(sft[i]);
        float step = delta * alpha;
        out[i] = round_to_even(step + a);
    }
}

static uint64_t weighted_sum(const uint16_t *restrict halves, const int64_t *restrict keys, int64_t n_words) {
    uint64_t sum = 0;
    for (int64_t i = 0; i < n_words; i++) {
        int32_t word;
        memcpy(&word, halves + 2 * i, sizeof word);
        sum += (uint64_t)keys[i] * (uint64_t)(int64_t)word;
    }
    return sum;
}

/* Elements [0, n) of one tensor: writes out, and sums[b] for every block of
 * block_words words; an odd last element is padded with zero bits to a word. alpha == 0 copies aligned. */
void expo_switch_bf16(uint16_t *restrict out, const uint16_t *restrict aligned, const uint16_t *restrict sft, float alpha,
                      int64_t n, const int64_t *restrict keys, int64_t block_words, uint64_t *restrict sums) {
    for (int64_t start = 0, block = 0; start < n; start += 2 * block_words, block++) {
        int64_t stop = start + 2 * block_words < n ? start + 2 * block_words : n;
        uint64_t sum = 0;
        for (int64_t i = start; i < stop; i += 2 * STRIP) {
            int64_t m = i + 2 * STRIP < stop ? 2 * STRIP : stop - i;
            if (alpha == 0.0f)
                memcpy(out + i, aligned + i, (size_t)m * sizeof *out);
            else
                extrapolate(out + i, aligned + i, sft + i, alpha, m);
            sum += weighted_sum(out + i, keys + (i - start) / 2, m / 2);
            if (m % 2)
                sum += (uint64_t)keys[(i + m - 1 - start) / 2] * (uint64_t)out[i + m - 1];
        }
        sums[block] = sum;
    }
}
