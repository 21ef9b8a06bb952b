// Log-probs of given tokens and their gradient, a part of the vocabulary at a time. float32. Compiled by library.py,
// called by vocabulary.py.

#include "gemm.h"

enum { TOGETHER = 5 * PANEL, SPAN = 16 * TOGETHER };  // entries whose logits a core has at one time; of one part

typedef struct {
  const float *hidden, *table;  // [N,D], [V,D]
  const int32_t *target;        // [N]
  const float *lse, *d_logp;    // [N], for the gradient
  float *error;                 // [N,width], for entries from `start` on
  long n, d, v, start, width, spans;
  float *seen;                  // [N,spans,SEEN]
} Logprobs;

enum { TOP, TOTAL, WEIGHTED, SEEN };  // largest logit, sum of exp(logit - TOP), sum of exp(logit - TOP) logit

static Gemm logits_of(const Logprobs *l, long row, long rows, long from, long columns, float *to, long ld) {
  return (Gemm){l->hidden + row * l->d, l->table + from * l->d, to, rows, columns, l->d, l->d, l->d, ld, 0, 1, 0};
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

// Some rows and one span of the vocabulary; a target's logit is left in `error`, which has one column here.
static void logprobs_part(const void *what, long index) {
  const Logprobs *l = what;
  long row = index / l->spans * CHUNK, rows = l->n - row < CHUNK ? l->n - row : CHUNK, span = index % l->spans;
  float *logits = room_of(rows * TOGETHER + gemm_room(rows, l->d, 0)), *rest = logits + rows * TOGETHER;
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
      if (at >= 0 && at < count) l->error[row + r] = logits[r * TOGETHER + at];
    }
  }
}

// 1[v = target] - p_v times d_logp, for some rows and panels of the part of the vocabulary at hand
static void error_part(const void *what, long index) {
  const Logprobs *l = what;
  Gemm all = logits_of(l, 0, l->n, l->start, l->width, l->error, l->width);
  Parts p = parts_of(all, l->spans);
  gemm_shared_part(&p, index);
  long panels = (l->width + PANEL - 1) / PANEL, i = index / p.across, j = index % p.across;
  long begin = panels * j / p.across * PANEL, end = panels * (j + 1) / p.across * PANEL;
  if (end > l->width) end = l->width;
  for (long r = l->n * i / p.down; r < l->n * (i + 1) / p.down; r++) {
    float *error = l->error + r * l->width, lse = l->lse[r], d = l->d_logp[r];
#pragma omp simd
    for (long c = begin; c < end; c++) error[c] = -d * exponential(error[c] - lse < 0 ? error[c] - lse : 0);
    long at = l->target[r] - l->start;
    if (at >= begin && at < end) error[at] += d;
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
  Logprobs l = {data(frame, 0), data(frame, 1), data(frame, 2), 0, 0, logp, n, d, v, 0, 1, spans, seen};
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
  long n = hidden[0], d = hidden[1], v = given(frame, 1)->dims[0], threads = threads_of(frame);
  long most = integer(frame, 0) < v ? integer(frame, 0) : v;
  float *d_hidden = result(frame, 0), *d_table = result(frame, 1), *error = malloc(sizeof(float) * n * most);
  Logprobs l = {data(frame, 0), data(frame, 1), data(frame, 2), data(frame, 3), data(frame, 4), error, n, d, v};
  l.spans = threads;
  int trained = ((XLA_FFI_Buffer *)frame->rets.rets[1])->dims[0] > 0;
  for (; l.start < v; l.start += l.width) {
    l.width = v - l.start < most ? v - l.start : most;
    const float *table = l.table + l.start * d;
    Parts p = parts_of(logits_of(&l, 0, n, l.start, l.width, error, l.width), threads);
    share(frame, error_part, &l, p.down * p.across);
    gemm_shared(frame, (Gemm){error, table, d_hidden, n, d, l.width, l.width, d, d, 0, 0, l.start > 0});
    Gemm turned = {error, l.hidden, d_table + l.start * d, l.width, d, n, l.width, d, d, 1, 0, 0};
    if (trained) gemm_shared(frame, turned);
  }
  free(error);
  return 0;
}
