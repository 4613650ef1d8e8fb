/* theta(alpha) from two files to a third, whatever floating-point dtypes they hold.
 *
 * Compiled with cpu_switch.c, with the same flags: subtract, multiply and add must be three separately rounded float32
 * operations, as formula.py defines them. The torch version there is the reference that this must equal to the bit.
 */
#include <errno.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>
#ifdef __F16C__
#include <immintrin.h>
#endif

enum {
    STRIP = 256,           /* elements that are computed at a time, in a core's smallest cache */
    PIECE_BYTES = 1 << 17, /* that are read from a file at a time, into the next larger one */
    WIDEST = 4             /* bytes of an element at most */
};

/* How a file holds its numbers. */
enum dtype { BF16, F16, F32 };

static const int64_t WIDTH[] = {2, 2, 4};

/* The least magnitude, as the bits of a float32, that is not finite once rounded to a dtype; NaNs are above it. */
static const uint32_t TOO_LARGE_FOR[] = {0x7F7F8000u, 0x477FF000u, 0x7F800000u};

/* Bytes of an open file from `offset` on. */
struct place {
    int64_t file, offset, dtype;
};

enum { ALIGNED_ENDED = -1, SFT_ENDED = -2, TOO_LARGE = -3 }; /* of expo_stream */

/* Whether this processor and compiler know float16; bfloat16 and float32 need neither. */
#if defined __F16C__ || defined __FLT16_MAX__
const int expo_has_float16 = 1;
#else
const int expo_has_float16 = 0;
#endif

static void widen(float *restrict out, const char *restrict in, int64_t dtype, int64_t n) {
    int64_t i = 0;
    if (dtype == F32) {
        memcpy(out, in, (size_t)n * sizeof *out);
    } else if (dtype == BF16) {
        const uint16_t *halves = (const uint16_t *)in;
        for (; i < n; i++) {
            uint32_t bits = (uint32_t)halves[i] << 16;
            memcpy(out + i, &bits, sizeof bits);
        }
    } else {
#ifdef __F16C__
        for (; i + 8 <= n; i += 8)
            _mm256_storeu_ps(out + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(in + 2 * i))));
        for (; i < n; i++)
            out[i] = _cvtsh_ss(((const uint16_t *)in)[i]);
#elif defined __FLT16_MAX__
        for (; i < n; i++)
            out[i] = (float)((const _Float16 *)in)[i];
#endif
    }
}

/* Rounded to nearest even; all of `in` are finite and stay so. */
static void narrow(char *restrict out, const float *restrict in, int64_t dtype, int64_t n) {
    int64_t i = 0;
    if (dtype == F32) {
        memcpy(out, in, (size_t)n * sizeof *in);
    } else if (dtype == BF16) {
        uint16_t *halves = (uint16_t *)out;
        for (; i < n; i++) {
            uint32_t bits;
            memcpy(&bits, in + i, sizeof bits);
            halves[i] = (uint16_t)((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16);
        }
    } else {
#ifdef __F16C__
        for (; i + 8 <= n; i += 8)
            _mm_storeu_si128((__m128i *)(out + 2 * i),
                             _mm256_cvtps_ph(_mm256_loadu_ps(in + i), _MM_FROUND_TO_NEAREST_INT));
        for (; i < n; i++)
            ((uint16_t *)out)[i] = _cvtss_sh(in[i], _MM_FROUND_TO_NEAREST_INT);
#elif defined __FLT16_MAX__
        for (; i < n; i++)
            ((_Float16 *)out)[i] = (_Float16)in[i];
#endif
    }
}

/* theta of n <= STRIP elements; whether all are finite in their dtype. alpha == 0 copies aligned, but for its dtype. */
static int extrapolate(char *restrict out, int64_t out_dtype, const char *restrict aligned, int64_t aligned_dtype,
                       const char *restrict sft, int64_t sft_dtype, float alpha, int64_t n) {
    float a[STRIP], s[STRIP];
    uint32_t largest = 0;
    widen(a, aligned, aligned_dtype, n);
    if (alpha != 0.0f) {
        widen(s, sft, sft_dtype, n);
        for (int64_t i = 0; i < n; i++) {
            float delta = a[i] - s[i];
            float step = delta * alpha;
            a[i] = step + a[i];
        }
    }
    for (int64_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, a + i, sizeof bits);
        bits &= 0x7FFFFFFFu;
        largest = bits > largest ? bits : largest;
    }
    if (largest >= TOO_LARGE_FOR[out_dtype])
        return 0;
    narrow(out, a, out_dtype, n);
    return 1;
}

/* 0, or an errno, or `ended` if the file has fewer bytes. */
static int read_all(int file, char *to, int64_t left, int64_t offset, int ended) {
    while (left > 0) {
        ssize_t got = pread(file, to, (size_t)left, (off_t)offset);
        if (got == 0)
            return ended;
        if (got < 0 && errno != EINTR)
            return errno;
        if (got > 0)
            to += got, offset += got, left -= got;
    }
    return 0;
}

static int write_all(int file, const char *from, int64_t left, int64_t offset) {
    while (left > 0) {
        ssize_t put = pwrite(file, from, (size_t)left, (off_t)offset);
        if (put < 0 && errno != EINTR)
            return errno;
        if (put > 0)
            from += put, offset += put, left -= put;
    }
    return 0;
}

/* n elements. They are read and computed in pieces that stay in a core's cache, and written as many as `memory` has
 * bytes of `room` for besides two pieces: the file system wants more at a time than the cache holds.
 * Returns 0 when all are written; an errno; which source ended early; or that a number is too large. */
int expo_stream(struct place aligned, struct place sft, struct place out, int64_t n, float alpha, char *memory,
                int64_t room) {
    const int64_t piece = PIECE_BYTES / WIDEST;
    const int64_t of_a = WIDTH[aligned.dtype], of_s = WIDTH[sft.dtype], of_out = WIDTH[out.dtype];
    char *a = memory, *s = a + PIECE_BYTES, *theta = s + PIECE_BYTES;
    room = (room - 2 * PIECE_BYTES) / of_out;
    for (int64_t done = 0, held = 0; done < n;) {
        int64_t m = n - done < piece ? n - done : piece;
        int fault = read_all((int)aligned.file, a, m * of_a, aligned.offset + done * of_a, ALIGNED_ENDED);
        if (!fault)
            fault = read_all((int)sft.file, s, m * of_s, sft.offset + done * of_s, SFT_ENDED);
        if (fault)
            return fault;
        for (int64_t i = 0; i < m; i += STRIP)
            if (!extrapolate(theta + (held + i) * of_out, out.dtype, a + i * of_a, aligned.dtype, s + i * of_s,
                             sft.dtype, alpha, m - i < STRIP ? m - i : STRIP))
                return TOO_LARGE;
        done += m, held += m;
        if (held + piece > room || done == n) {
            fault = write_all((int)out.file, theta, held * of_out, out.offset + (done - held) * of_out);
            if (fault)
                return fault;
            held = 0;
        }
    }
    return 0;
}
