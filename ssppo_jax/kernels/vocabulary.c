// Log-probs of given tokens and their gradient, a part of the vocabulary at a time. float32. Compiled by library.py,
// called by vocabulary.py.

#include "gemm.h"

enum { TOGETHER = 5 * PANEL, SPAN = 16 * TOGETHER };  // entries whose logits a core has at one time; of one part

typedef struct {
  const float *hidden, *table;  // [N,D], [V,D]
  const int32_t *target;        // [N]
  long n, d, v;
  float *logit;                 // [N] of the target
  long spans;
  float *seen;                  // [N,spans,SEEN]
} Logprobs;

enum { TOP, TOTAL, WEIGHTED, SEEN };  // largest logit, sum of exp(logit - TOP), sum of exp(logit - TOP) logit

// Of some rows and entries of the vocabulary.
static Gemm logits_of(const Logprobs *l, long row, long rows, long from, long columns, float *to, long ld) {
  const float *hidden = l->hidden + row * l->d, *table = l->table + from * l->d;
  return (Gemm){hidden, table, to, rows, columns, l->d, l->d, l->d, ld, PLAIN, TURNED, 0};
}

static void fold(float *seen, const float *logit, long count) {
  float top = seen[TOP], total = 0, weighted = 0;
#pragma omp simd reduction(max : top)
  for (long j = 0; j < count; j++) top = logit[j] > top ? logit[j] : top;
#pragma omp simd reduction(+ : total, weighted)
  for (long j = 0; j < count; j++) {
    float e = exponential(logit[j] - top);
    total += e, weighted += e * logit[j];
  }
  float old = exponential(seen[TOP] - top);
  seen[TOP] = top, seen[TOTAL] = seen[TOTAL] * old + total, seen[WEIGHTED] = seen[WEIGHTED] * old + weighted;
}

// Some rows and one span of the vocabulary.
static void logprobs_part(const void *what, long index) {
  const Logprobs *l = what;
  long row = index / l->spans * CHUNK, rows = l->n - row < CHUNK ? l->n - row : CHUNK, span = index % l->spans;
  float *logits = room_of(rows * TOGETHER + gemm_room(rows, l->d, PLAIN)), *rest = logits + rows * TOGETHER;
  for (long r = row; r < row + rows; r++) {
    float *seen = l->seen + (r * l->spans + span) * SEEN;
    seen[TOP] = -INFINITY, seen[TOTAL] = seen[WEIGHTED] = 0;
  }
  long last = (span + 1) * SPAN < l->v ? (span + 1) * SPAN : l->v;
  for (long from = span * SPAN; from < last; from += TOGETHER) {
    long count = last - from < TOGETHER ? last - from : TOGETHER;
    Gemm g = logits_of(l, row, rows, from, count, logits, TOGETHER);
    gemm(&g, rest);
    for (long r = 0; r < rows; r++) {
      fold(l->seen + ((row + r) * l->spans + span) * SEEN, logits + r * TOGETHER, count);
      long at = l->target[row + r] - from;
      if (at >= 0 && at < count) l->logit[row + r] = logits[r * TOGETHER + at];
    }
  }
}

typedef struct {
  Parts logits;               // of entries from `start` on, which become errors in place
  const int32_t *target;      // [N]
  const float *lse, *d_logp;  // [N]
  long start;
} Errors;

// 1[v = target] - p_v times d_logp, for some rows and panels.
static void errors_part(const void *what, long index) {
  const Errors *e = what;
  const Gemm *g = &e->logits.g;
  Part at = part_of(&e->logits, index);
  gemm_shared_part(&e->logits, index);
  long begin = at.begin * PANEL, end = at.end * PANEL < g->n ? at.end * PANEL : g->n;
  for (long r = at.first; r < at.last; r++) {
    float *error = g->c + r * g->ldc, lse = e->lse[r], d = e->d_logp[r];
#pragma omp simd
    for (long c = begin; c < end; c++) error[c] = -d * exponential(error[c] - lse < 0 ? error[c] - lse : 0);
    long target = e->target[r] - e->start;
    if (target >= begin && target < end) error[target] += d;
  }
}

// ---- called by XLA ----

// hidden [N,D], table [V,D], target [N] -> logp [N], entropy [N], log of the sum of exponentials [N]
XLA_FFI_Error *ssppo_logprobs(XLA_FFI_CallFrame *frame) {
  if (is_question(frame)) return 0;
  const int64_t *hidden = given(frame, 0)->dims;
  long n = hidden[0], d = hidden[1], v = given(frame, 1)->dims[0], spans = (v + SPAN - 1) / SPAN;
  float *logp = result(frame, 0), *entropy = result(frame, 1), *lse = result(frame, 2);
  float *seen = malloc(sizeof(float) * n * spans * SEEN);
  Logprobs l = {data(frame, 0), data(frame, 1), data(frame, 2), n, d, v, logp, spans, seen};
  share(frame, logprobs_part, &l, (n + CHUNK - 1) / CHUNK * spans);
  for (long r = 0; r < n; r++) {
    const float *part = seen + r * spans * SEEN;
    float top = -INFINITY, total = 0, weighted = 0;
    for (long s = 0; s < spans; s++) top = part[s * SEEN + TOP] > top ? part[s * SEEN + TOP] : top;
    for (long s = 0; s < spans; s++) {
      float e = exponential(part[s * SEEN + TOP] - top);
      total += e * part[s * SEEN + TOTAL], weighted += e * part[s * SEEN + WEIGHTED];
    }
    lse[r] = top + logf(total), logp[r] -= lse[r], entropy[r] = lse[r] - weighted / total;
  }
  free(seen);
  return 0;
}

// hidden, table, target, lse, d_logp -> d_hidden [N,D], d_table [V,D] or, where it is not asked for, [0,D]; attribute:
// entries whose logits exist at one time
XLA_FFI_Error *ssppo_logprobs_back(XLA_FFI_CallFrame *frame) {
  if (is_question(frame)) return 0;
  const int64_t *hidden = given(frame, 0)->dims;
  long n = hidden[0], d = hidden[1], v = given(frame, 1)->dims[0];
  long most = integer(frame, 0) < v ? integer(frame, 0) : v;
  float *d_hidden = result(frame, 0), *d_table = result(frame, 1), *error = malloc(sizeof(float) * n * most);
  int trained = ((XLA_FFI_Buffer *)frame->rets.rets[1])->dims[0] > 0;
  Logprobs l = {data(frame, 0), data(frame, 1), data(frame, 2), n, d, v};
  for (long start = 0, width; start < v; start += width) {
    width = v - start < most ? v - start : most;
    Parts logits = parts_of(logits_of(&l, 0, n, start, width, error, width), threads_of(frame));
    Errors e = {logits, l.target, data(frame, 3), data(frame, 4), start};
    share(frame, errors_part, &e, logits.down * logits.across);
    const float *table = l.table + start * d;
    gemm_shared(frame, (Gemm){error, table, d_hidden, n, d, width, width, d, d, PLAIN, PLAIN, start > 0});
    if (!trained) continue;
    float *to = d_table + start * d;
    gemm_shared(frame, (Gemm){error, l.hidden, to, width, d, n, width, d, d, TURNED, PLAIN, 0});
  }
  free(error);
  return 0;
}
