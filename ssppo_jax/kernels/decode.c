// What a decoding step spends its time on, for XLA's CPU backend: products with weights packed once, and attention of
// one token over a shared prompt and a ring of its own keys. float32. Compiled by library.py, called by decode.py.
//
// A row's result is the same to the last bit whatever other rows are beside it, and however many threads work.

#include "gemm.h"

// ---- attention of one token ----

enum { TOGETHER = 4, BLOCK = (MANY ? 4 : 2) * LANES };  // queries that read a key together; columns of a value likewise

typedef struct {
  const float *q;                         // [B,K,H,E]
  const float *prompt_k, *prompt_v;       // [B,G,P,E]
  const float *own_k, *own_v;             // [B,K,G,T,E], a ring
  const float *new_k, *new_v;             // [B,K,G,E], of the token itself
  const int32_t *length, *filled;         // [B] of the prompt; [B] tokens in the ring
  int32_t head, window;                   // slot that is written next; positions seen, the token's own included
  float *out;                             // [B,K,H,E]
  long k, g, h, e, p, t;
  float scale, softcap;
} Attention;

typedef struct {
  const float *k, *v;
  long count;
  long ahead;  // from a key to the one that is read when this completion is done, which is fetched meanwhile; or 0
} Keys;

// A vector's lanes added up to four.
ALWAYS quad narrow(vec x) {
  quad sum = {0};
  UNROLL for (int n = 0; n < LANES; n += 4) sum += *((const quad *)&x + n / 4);
  return sum;
}

ALWAYS quad pairs(quad a, quad b) { return (quad){a[0] + a[1], a[2] + a[3], b[0] + b[1], b[2] + b[3]}; }

// Scores of `rows` queries [rows,e], `stride` apart, four keys at a time: up to three behind the last are written too.
ALWAYS void scores_of(int rows, const float *q, const Keys *keys, long e, float *scores, long stride) {
  long last = keys->count - 1;
  for (long j = 0; j <= last; j += 4) {
    vec sum[4][TOGETHER] = {0};
    UNROLL for (int m = 0; m < 4; m++) {
      const float *k = keys->k + (j + m < last ? j + m : last) * e;
      if (keys->ahead)
        UNROLL for (long i = 0; i < e; i += LINE) __builtin_prefetch(k + keys->ahead + i, 0, 2);
      UNROLL for (long i = 0; i < e / LANES; i++)
        UNROLL for (int r = 0; r < rows; r++)
          sum[m][r] += *(const vec *)(q + r * e + i * LANES) * *(const vec *)(k + i * LANES);
    }
    UNROLL for (int r = 0; r < rows; r++)
      *(quad *)(scores + r * stride + j) = pairs(pairs(narrow(sum[0][r]), narrow(sum[1][r])),
                                                 pairs(narrow(sum[2][r]), narrow(sum[3][r])));
  }
}

// out[rows,e]: the mean of the values by weights [rows,stride], in blocks of columns whose sums are held in registers.
ALWAYS void mix(int rows, const float *weights, long stride, const float *total, const Keys keys[4], long e,
                float *out) {
  for (long c = 0; c < e; c += BLOCK) {
    vec sum[TOGETHER][BLOCK / LANES] = {0};
    const float *w = weights;
    for (int n = 0; n < 4; w += keys[n++].count)
      for (long j = 0; j < keys[n].count; j++) {
        const float *next = keys[n].v + keys[n].ahead + j * e + c;
        if (keys[n].ahead)
          UNROLL for (int i = 0; i < BLOCK; i += LINE) __builtin_prefetch(next + i, 0, 2);
        UNROLL for (int v = 0; v < BLOCK / LANES; v++) {
          vec value = *(const vec *)(keys[n].v + j * e + c + v * LANES);
          UNROLL for (int r = 0; r < rows; r++) sum[r][v] += w[r * stride + j] * value;
        }
      }
    UNROLL for (int r = 0; r < rows; r++)
      UNROLL for (int v = 0; v < BLOCK / LANES; v++) *(vec *)(out + r * e + c + v * LANES) = sum[r][v] / total[r];
  }
}

// Scores become weights, in sum the number returned.
static float weights_of(float *scores, long count, float scale, float softcap) {
  float top = -INFINITY, total = 0;
  for (long j = 0; j < count; j++) scores[j] *= scale;
  if (softcap)
    for (long j = 0; j < count; j++) scores[j] = softcap * tanhf(scores[j] / softcap);
#pragma omp simd reduction(max : top)
  for (long j = 0; j < count; j++) top = scores[j] > top ? scores[j] : top;
#pragma omp simd reduction(+ : total)
  for (long j = 0; j < count; j++) total += scores[j] = exponential(scores[j] - top);
  return total;
}

// The same of any size, one query at a time.
static void attend_any(const Attention *a, const float *q, const Keys keys[4], float *scores, float *out) {
  long e = a->e;
  long count = 0;
  for (int n = 0; n < 4; n++)
    for (long j = 0; j < keys[n].count; j++) {
      float s = 0;
      for (long i = 0; i < e; i++) s += q[i] * keys[n].k[j * e + i];
      scores[count++] = s;
    }
  float total = weights_of(scores, count, a->scale, a->softcap);
  memset(out, 0, sizeof(float) * e);
  for (int n = 0; n < 4; n++)
    for (long j = 0; j < keys[n].count; j++, scores++)
      for (long i = 0; i < e; i++) out[i] += *scores / total * keys[n].v[j * e + i];
}

// What completion [b,k] sees of group g, in the order of positions: its prompt, its ring in two pieces, itself.
static void seen(const Attention *a, long b, long k, long g, Keys keys[4]) {
  long length = a->length[b] < a->p ? a->length[b] : a->p, filled = a->filled[b] < a->t ? a->filled[b] : a->t;
  long far = filled + 1 - a->window;  // tokens of the completion that are out of sight; below 0: of the prompt too
  long skipped = far > 0 ? far : 0, from = far + length > 0 ? far + length : 0;
  if (from > length) from = length;
  long shared = (b * a->g + g) * a->p * a->e, row = (b * a->k + k) * a->g + g;
  const float *own = a->own_k + row * a->t * a->e, *own_v = a->own_v + row * a->t * a->e;
  long count = filled - skipped, slot = ((a->head - count) % a->t + a->t) % a->t;
  long first = count < a->t - slot ? count : a->t - slot;
  keys[0] = (Keys){a->prompt_k + shared + from * a->e, a->prompt_v + shared + from * a->e, length - from, 0};
  keys[1] = (Keys){own + slot * a->e, own_v + slot * a->e, first, a->g * a->t * a->e};
  keys[2] = (Keys){own, own_v, count - first, a->g * a->t * a->e};
  keys[3] = (Keys){a->new_k + row * a->e, a->new_v + row * a->e, 1, 0};
}

// `rows` queries of one completion that share their keys; `scores` [rows,stride].
ALWAYS void attend_rows(const Attention *a, int rows, const float *q, const Keys keys[4], long e, float *scores,
                        float *out) {
  long stride = a->p + a->t + 4, count = 0;
  float total[TOGETHER];
  for (int n = 0; n < 4; count += keys[n++].count) scores_of(rows, q, &keys[n], e, scores + count, stride);
  for (int r = 0; r < rows; r++) total[r] = weights_of(scores + r * stride, count, a->scale, a->softcap);
  mix(rows, scores, stride, total, keys, e, out);
}

// The queries of group g of every completion of prompt b; `e` is known when this is compiled, or 0.
ALWAYS void attend_group(const Attention *a, long b, long g, long e, float *scores) {
  long queries = a->h / a->g, step = e ? TOGETHER : 1;
  for (long k = 0; k < a->k; k++) {
    Keys keys[4];
    seen(a, b, k, g, keys);
    for (long r = 0; r < queries; r += step) {
      long at = ((b * a->k + k) * a->h + g * queries + r) * a->e;
      const float *q = a->q + at;
      float *out = a->out + at;
      if (!e) attend_any(a, q, keys, scores, out);
      else if (queries - r >= 4) attend_rows(a, 4, q, keys, e, scores, out);
      else if (queries - r == 3) attend_rows(a, 3, q, keys, e, scores, out);
      else if (queries - r == 2) attend_rows(a, 2, q, keys, e, scores, out);
      else attend_rows(a, 1, q, keys, e, scores, out);
    }
  }
}

static void group(const void *what, long index) {
  const Attention *a = what;
  float *scores = room_of(TOGETHER * (a->p + a->t + 4));
  long b = index / a->g, g = index % a->g;
  if (a->e == 64) attend_group(a, b, g, 64, scores);
  else if (a->e == 128) attend_group(a, b, g, 128, scores);
  else if (a->e == 256) attend_group(a, b, g, 256, scores);
  else attend_group(a, b, g, 0, scores);
}

// ---- called by XLA ----

// x [rows,depth], packed [panels,depth,PANEL] -> y [rows,columns]
XLA_FFI_Error *ssppo_product(XLA_FFI_CallFrame *frame) {
  if (is_question(frame)) return 0;
  long rows = given(frame, 0)->dims[0], depth = given(frame, 0)->dims[1];
  long columns = ((XLA_FFI_Buffer *)frame->rets.rets[0])->dims[1];
  const float *x = data(frame, 0), *packed = data(frame, 1);
  gemm_shared(frame, (Gemm){x, packed, result(frame, 0), rows, columns, depth, depth, 0, columns, PLAIN, PACKED, 0});
  return 0;
}

// The fields of Attention in their order -> out [B,K,H,E]; attributes by name: scale, softcap
XLA_FFI_Error *ssppo_attend_token(XLA_FFI_CallFrame *frame) {
  if (is_question(frame)) return 0;
  const int64_t *q = given(frame, 0)->dims, *prompt = given(frame, 1)->dims, *own = given(frame, 3)->dims;
  Attention a = {data(frame, 0), data(frame, 1), data(frame, 2), data(frame, 3), data(frame, 4), data(frame, 5),
                 data(frame, 6), data(frame, 7), data(frame, 8), whole(frame, 9), whole(frame, 10),
                 result(frame, 0), q[1], prompt[1], q[2], q[3], prompt[2], own[3], number(frame, 0), number(frame, 1)};
  share(frame, group, &a, q[0] * a.g);
  return 0;
}
