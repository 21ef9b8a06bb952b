// Attention of whole sequences, a prompt and its completions, with the gradient, for XLA's CPU backend. float32.
// Compiled by library.py, called by stream.py.

#include "gemm.h"

enum { QUERIES = 192 };  // that read the same keys together, about

typedef struct {
  const float *q, *k, *v;  // [B,S,H,E], [B,S,G,E], S = P + K T
  const int32_t *length;   // [B] of the prompts
  const float *d_out;      // [B,S,H,E], or none where the gradient is not asked for
  float *out;              // [B,S,H,E]
  float *dq, *dk, *dv;     // of q, k, v
  long b, s, h, g, e, p, c, t;
  float scale;
} Stream;

// Some neighbouring tokens of one stream, with the heads that share keys: `rows` queries, head by head.
typedef struct {
  long b, g, at, tokens, rows;  // the first token's place in S
  long seen, own, before;       // keys of the prompt, for a completion; where its stream starts in S; what is before
  long columns;                 // seen + before + tokens
} Piece;

static long tokens_of_piece(const Stream *s) {
  long together = QUERIES / (s->h / s->g);
  return together > 8 ? together : 8;
}

// Stream n of a prompt, the prompt's own being -1.
static Piece piece_of(const Stream *s, long b, long g, long n, long from) {
  long size = n < 0 ? s->p : s->t, most = tokens_of_piece(s), tokens = size - from < most ? size - from : most;
  long length = s->length[b] < s->p ? s->length[b] : s->p;
  long start = n < 0 ? 0 : s->p + n * s->t, seen = n < 0 ? 0 : length;
  return (Piece){b, g, start + from, tokens, tokens * (s->h / s->g), seen, start, from, seen + from + tokens};
}

// Rows of heads, [rows,E], out of [B,S,H,E] and back.
static void gather(const Stream *s, const Piece *p, const float *from, float scale, float *to) {
  long heads = s->h / s->g;
  for (long r = 0; r < heads; r++)
    for (long i = 0; i < p->tokens; i++, to += s->e) {
      const float *x = from + ((p->b * s->s + p->at + i) * s->h + p->g * heads + r) * s->e;
      for (long e = 0; e < s->e; e++) to[e] = scale * x[e];
    }
}

static void scatter(const Stream *s, const Piece *p, const float *from, float scale, float *to) {
  long heads = s->h / s->g;
  for (long r = 0; r < heads; r++)
    for (long i = 0; i < p->tokens; i++, from += s->e) {
      float *x = to + ((p->b * s->s + p->at + i) * s->h + p->g * heads + r) * s->e;
      for (long e = 0; e < s->e; e++) x[e] = scale * from[e];
    }
}

// rows [rows,E] times all keys (or values) that they may see, turned -> [rows,columns]
static void by_keys(const Stream *s, const Piece *p, const float *rows, const float *keys, float *to, float *room) {
  long step = s->g * s->e, own = p->columns - p->seen;
  const float *k = keys + p->b * s->s * step + p->g * s->e;
  Gemm g = {rows, k, to, p->rows, p->seen, s->e, s->e, step, p->columns, PLAIN, TURNED, 0};
  if (p->seen) gemm(&g, room);
  g.b = k + p->own * step, g.c = to + p->seen, g.n = own;
  gemm(&g, room);
}

// weights [rows,columns] times values (or keys) -> [rows,E]
static void by_values(const Stream *s, const Piece *p, const float *weights, const float *values, float *to,
                      float *room) {
  long step = s->g * s->e, own = p->columns - p->seen;
  const float *v = values + p->b * s->s * step + p->g * s->e;
  Gemm g = {weights, v, to, p->rows, s->e, p->seen, p->columns, step, s->e, PLAIN, PLAIN, 0};
  if (p->seen) gemm(&g, room);
  g.a = weights + p->seen, g.b = v + p->own * step, g.k = own, g.more = p->seen > 0;
  gemm(&g, room);
}

// What the values (or keys) get: weights turned times rows [rows,E], added.
static void to_keys(const Stream *s, const Piece *p, const float *weights, const float *rows, float *to, float *room) {
  long step = s->g * s->e, own = p->columns - p->seen;
  float *k = to + p->b * s->s * step + p->g * s->e;
  Gemm g = {weights, rows, k, p->seen, s->e, p->rows, p->columns, s->e, step, TURNED, PLAIN, 1};
  if (p->seen) gemm(&g, room);
  g.a = weights + p->seen, g.c = k + p->own * step, g.m = own;
  gemm(&g, room);
}

// Scores become weights; what may not be seen gets 0.
static void softmax(const Piece *p, float *scores) {
  for (long r = 0; r < p->rows; r++, scores += p->columns) {
    long count = p->seen + p->before + r % p->tokens + 1;
    float top = -INFINITY, total = 0;
#pragma omp simd reduction(max : top)
    for (long j = 0; j < count; j++) top = scores[j] > top ? scores[j] : top;
#pragma omp simd reduction(+ : total)
    for (long j = 0; j < count; j++) total += scores[j] = exponential(scores[j] - top);
    float share = 1.0f / total;
#pragma omp simd
    for (long j = 0; j < count; j++) scores[j] *= share;
    memset(scores + count, 0, sizeof(float) * (p->columns - count));
  }
}

// d_weights become d_scores: w (dw - sum w dw)
static void softmax_back(const Piece *p, const float *weights, float *d) {
  for (long r = 0; r < p->rows; r++, weights += p->columns, d += p->columns) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (long j = 0; j < p->columns; j++) sum += weights[j] * d[j];
#pragma omp simd
    for (long j = 0; j < p->columns; j++) d[j] = weights[j] * (d[j] - sum);
  }
}

static long rows_at_most(const Stream *s) { return tokens_of_piece(s) * (s->h / s->g); }
static long columns_at_most(const Stream *s) { return (s->p + s->t + LINE - 1) / LINE * LINE; }
static long attention_room(const Stream *s) { return gemm_room(CHUNK, rows_at_most(s), TURNED); }

static void attend_piece(const Stream *s, const Piece *p, float *room) {
  float *q = room, *scores = q + rows_at_most(s) * s->e, *rest = scores + rows_at_most(s) * columns_at_most(s);
  gather(s, p, s->q, s->scale, q);
  by_keys(s, p, q, s->k, scores, rest);
  softmax(p, scores);
  by_values(s, p, scores, s->v, q, rest);
  scatter(s, p, q, 1, s->out);
}

static void attend_piece_back(const Stream *s, const Piece *p, float *room) {
  float *q = room, *d_out = q + rows_at_most(s) * s->e, *weights = d_out + rows_at_most(s) * s->e;
  float *d = weights + rows_at_most(s) * columns_at_most(s), *rest = d + rows_at_most(s) * columns_at_most(s);
  gather(s, p, s->q, s->scale, q);
  gather(s, p, s->d_out, 1, d_out);
  by_keys(s, p, q, s->k, weights, rest);
  softmax(p, weights);
  to_keys(s, p, weights, d_out, s->dv, rest);
  by_keys(s, p, d_out, s->v, d, rest);
  softmax_back(p, weights, d);
  to_keys(s, p, d, q, s->dk, rest);
  by_values(s, p, d, s->k, q, rest);
  scatter(s, p, q, s->scale, s->dq);
}

static void attend_part(const void *what, long index) {  // one stream's queries that share keys
  const Stream *s = what;
  long streams = s->c + (s->p > 0), n = index % streams - (s->p > 0), g = index / streams % s->g;
  float *room = room_of(rows_at_most(s) * (s->e + columns_at_most(s)) + attention_room(s));
  for (long from = 0; from < (n < 0 ? s->p : s->t); from += tokens_of_piece(s)) {
    Piece p = piece_of(s, index / streams / s->g, g, n, from);
    attend_piece(s, &p, room);
  }
}

static void attend_back_part(const void *what, long index) {  // all that adds to the same keys
  const Stream *s = what;
  long b = index / s->g, g = index % s->g;
  float *room = room_of(2 * rows_at_most(s) * (s->e + columns_at_most(s)) + attention_room(s));
  for (long i = 0; i < s->s; i++) {
    long at = ((b * s->s + i) * s->g + g) * s->e;
    memset(s->dk + at, 0, sizeof(float) * s->e), memset(s->dv + at, 0, sizeof(float) * s->e);
  }
  for (long n = s->p ? -1 : 0; n < s->c; n++)
    for (long from = 0; from < (n < 0 ? s->p : s->t); from += tokens_of_piece(s)) {
      Piece p = piece_of(s, b, g, n, from);
      attend_piece_back(s, &p, room);
    }
}

// ---- called by XLA ----

static Stream stream_of(XLA_FFI_CallFrame *frame) {  // attributes by name: completions, prompt, scale
  const int64_t *q = given(frame, 0)->dims, *k = given(frame, 1)->dims;
  long c = integer(frame, 0), p = integer(frame, 1);
  return (Stream){data(frame, 0), data(frame, 1), data(frame, 2), data(frame, 3), 0, 0, 0, 0, 0,
                  q[0], q[1], q[2], k[2], q[3], p, c, c ? (q[1] - p) / c : 0, number(frame, 2)};
}

// q, k, v, length -> out
XLA_FFI_Error *ssppo_attend(XLA_FFI_CallFrame *frame) {
  if (is_question(frame)) return 0;
  Stream s = stream_of(frame);
  s.out = result(frame, 0);
  share(frame, attend_part, &s, s.b * s.g * (s.c + (s.p > 0)));
  return 0;
}

// q, k, v, length, d_out -> dq, dk, dv
XLA_FFI_Error *ssppo_attend_back(XLA_FFI_CallFrame *frame) {
  if (is_question(frame)) return 0;
  Stream s = stream_of(frame);
  s.d_out = data(frame, 4), s.dq = result(frame, 0), s.dk = result(frame, 1), s.dv = result(frame, 2);
  share(frame, attend_back_part, &s, s.b * s.g);
  return 0;
}
