/* What the data path is compared with where C is the measure: the bare gather of windows, which is
   its ceiling, and two other schedules of a mixture (Megatron's greedy one, a chain of words). */

#include <stdint.h>

/* rows of `length` uint16 tokens from source[row], widened into consecutive rows of out */
void gather(const uint16_t *const *source, int64_t rows, int64_t length, int64_t *out)
{
    for (int64_t row = 0; row < rows; row++) {
        const uint16_t *restrict tokens = source[row];
        int64_t *restrict target = out + row * length;
        for (int64_t column = 0; column < length; column++)
            target[column] = tokens[column];
    }
}

/* many batches into the same buffer, without returning to Python between them */
void gather_batches(const uint16_t *const *source, int64_t batches, int64_t rows, int64_t length,
                    int64_t *out)
{
    for (int64_t batch = 0; batch < batches; batch++)
        gather(source + batch * rows, rows, length, out);
}

/* Megatron's build_blending_indices: always the domain that is furthest behind */
void greedy(const double *weights, int64_t domains, int64_t draws, int64_t *drawn, int32_t *out)
{
    for (int64_t draw = 0; draw < draws; draw++) {
        double position = draw > 1 ? (double)draw : 1.0, most = weights[0] * position - drawn[0];
        int64_t chosen = 0;
        for (int64_t domain = 1; domain < domains; domain++) {
            double behind = weights[domain] * position - drawn[domain];
            if (behind > most) {
                most = behind;
                chosen = domain;
            }
        }
        drawn[chosen]++;
        out[draw] = (int32_t)chosen;
    }
}

/* domains peeled off one at a time, each by one Beatty word between it and all later ones */
void chain(const int64_t *quotas, int64_t domains, int64_t draws, int32_t *out)
{
    for (int64_t draw = 0; draw < draws; draw++) {
        int64_t rest = draw, total = draws, domain = 0;
        for (; domain < domains - 1; domain++) {
            int64_t quota = quotas[domain], half = total / 2;
            if (quota == 0)
                continue;
            int64_t left = (rest * quota + half) / total;
            if (((rest + 1) * quota + half) / total > left)
                break;
            rest -= left;
            total -= quota;
        }
        out[draw] = (int32_t)domain;
    }
}
