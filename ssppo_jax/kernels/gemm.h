// Products of matrices that are used once, so their second factor is packed a block at a time on the way. float32.

#include "tile.h"

enum { CHUNK = 256 };  // rows of c done with one packed block

typedef struct {
  const float *a, *b;  // [m,k], [k,n]
  float *c;            // [m,n] = a b
  long m, n, k;
  long lda, ldb, ldc;      // from one row to the next, as they are stored
  int turned_a, turned_b;  // stored [k,m], [n,k]
  int more;                // added to what c holds
} Gemm;

#if defined(__clang__) || __GNUC__ >= 12
#define PICK(a, b, i, j, k, l) __builtin_shufflevector(a, b, i, j, k, l)
#else
#define PICK(a, b, i, j, k, l) __builtin_shuffle(a, b, (__attribute__((vector_size(16))) int){i, j, k, l})
#endif

// The transpose of 4x4 entries.
ALWAYS void turn(const float *from, long ldf, float *to, long ldt) {
  quad a = *(const quad *)from, b = *(const quad *)(from + ldf);
  quad c = *(const quad *)(from + 2 * ldf), d = *(const quad *)(from + 3 * ldf);
  quad ab = PICK(a, b, 0, 4, 1, 5), cd = PICK(c, d, 0, 4, 1, 5);
  *(quad *)to = PICK(ab, cd, 0, 1, 4, 5), *(quad *)(to + ldt) = PICK(ab, cd, 2, 3, 6, 7);
  ab = PICK(a, b, 2, 6, 3, 7), cd = PICK(c, d, 2, 6, 3, 7);
  *(quad *)(to + 2 * ldt) = PICK(ab, cd, 0, 1, 4, 5), *(quad *)(to + 3 * ldt) = PICK(ab, cd, 2, 3, 6, 7);
}

// Rows k, k+1, ... of columns j, j+1, ... of b -> [depth,PANEL]. Zeros behind them: chance could be slow (denormal).
static void pack_block(const Gemm *g, long k, long depth, long j, long columns, float *to) {
  if (columns < PANEL) memset(to, 0, sizeof(float) * depth * PANEL);
  if (!g->turned_b) {
    const float *b = g->b + k * g->ldb + j;
    if (columns == PANEL)
      for (long i = 0; i < depth; i++) memcpy(to + i * PANEL, b + i * g->ldb, sizeof(float) * PANEL);
    else
      for (long i = 0; i < depth; i++) memcpy(to + i * PANEL, b + i * g->ldb, sizeof(float) * columns);
    return;
  }
  const float *b = g->b + j * g->ldb + k;
  long whole = columns / 4 * 4, deep = depth / 4 * 4;
  for (long c = 0; c < whole; c += 4)
    for (long i = 0; i < deep; i += 4) turn(b + c * g->ldb + i, g->ldb, to + i * PANEL + c, PANEL);
  for (long c = 0; c < columns; c++)
    for (long i = c < whole ? deep : 0; i < depth; i++) to[i * PANEL + c] = b[c * g->ldb + i];
}

// Rows of a that is stored turned -> for every tile [k,TALLEST]. A few k at a time, whose rows of a stay in the cache.
static void pack_rows(const Gemm *g, long first, long rows, float *to) {
  long tiles = (rows + TALLEST - 1) / TALLEST;
  for (long from = 0; from < g->k; from += TALLEST * TALLEST)
    for (long n = 0; n < tiles; n++) {
      long row = rows * n / tiles, count = rows * (n + 1) / tiles - row;
      long end = from + TALLEST * TALLEST < g->k ? from + TALLEST * TALLEST : g->k;
      const float *a = g->a + first + row;
      float *tile = to + n * g->k * TALLEST;
      if (count == TALLEST)
        for (long k = from; k < end; k++) memcpy(tile + k * TALLEST, a + k * g->lda, sizeof(float) * TALLEST);
      else
        for (long k = from; k < end; k++)
          for (long r = 0; r < count; r++) tile[k * TALLEST + r] = a[k * g->lda + r];
    }
}

// Rows of one panel of c. `block` [DEPTH,PANEL], `sums` [rows,PANEL]; `turned` as `pack_rows` leaves it.
static void gemm_panel(const Gemm *g, long first, long rows, long index, float *block, float *sums,
                       const float *turned) {
  long j = index * PANEL, columns = g->n - j < PANEL ? g->n - j : PANEL;
  long blocks = (g->k + DEPTH - 1) / DEPTH, tiles = (rows + TALLEST - 1) / TALLEST;
  float *c = g->c + first * g->ldc + j, *to = columns == PANEL ? c : sums;
  long ld = columns == PANEL ? g->ldc : PANEL;
  if (columns < PANEL && g->more)
    for (long r = 0; r < rows; r++) memcpy(sums + r * PANEL, c + r * g->ldc, sizeof(float) * columns);
  for (long n = 0; n < blocks; n++) {
    long k = g->k * n / blocks, depth = g->k * (n + 1) / blocks - k;
    pack_block(g, k, depth, j, columns, block);
    for (long i = 0; i < tiles; i++) {
      long row = rows * i / tiles, count = rows * (i + 1) / tiles - row;
      float *sum = to + row * ld;
      const float *from = n || g->more ? sum : 0;
      const float *a = turned ? turned + (i * g->k + k) * TALLEST : g->a + (first + row) * g->lda + k;
      tile_columns((int)count, columns, (Tile){a, block, from, sum, g->lda, ld, ld, depth}, turned != 0);
    }
  }
  if (columns < PANEL)
    for (long r = 0; r < rows; r++) memcpy(c + r * g->ldc, sums + r * PANEL, sizeof(float) * columns);
}

// Some rows of some panels of c; `room` as `gemm_room` says.
static void gemm_part(const Gemm *g, long first, long last, long begin, long end, float *room) {
  float *block = room, *sums = block + DEPTH * PANEL, *turned = g->turned_a ? sums + CHUNK * PANEL : 0;
  for (; first < last; first += CHUNK) {
    long rows = last - first < CHUNK ? last - first : CHUNK;
    if (turned) pack_rows(g, first, rows, turned);
    for (long n = begin; n < end; n++) gemm_panel(g, first, rows, n, block, sums, turned);
  }
}

static long gemm_room(long m, long k, int turned_a) {  // floats
  long rows = (m < CHUNK ? m : CHUNK) + TALLEST;
  return DEPTH * PANEL + CHUNK * PANEL + (turned_a ? rows * k : 0);
}

static void gemm(const Gemm *g, float *room) { gemm_part(g, 0, g->m, 0, (g->n + PANEL - 1) / PANEL, room); }

// ---- shared out to threads ----

// A thread's own, kept for its next part: memory that is given back costs a page fault for every 4 KiB.
static float *room_of(long floats) {
  static _Thread_local float *room;
  static _Thread_local long size;
  if (floats > size) free(room), room = aligned_alloc(64, (sizeof(float) * floats + 63) / 64 * 64), size = floats;
  return room;
}

typedef struct {
  Gemm g;
  long down, across;  // parts of the rows, of the panels
} Parts;

static Parts parts_of(Gemm g, long threads) {
  long panels = (g.n + PANEL - 1) / PANEL, down = (g.m + CHUNK - 1) / CHUNK, across = (2 * threads + down - 1) / down;
  return (Parts){g, down, across < panels ? across : panels};
}

static void gemm_shared_part(const void *what, long index) {
  const Parts *p = what;
  const Gemm *g = &p->g;
  long panels = (g->n + PANEL - 1) / PANEL, i = index / p->across, j = index % p->across;
  long first = g->m * i / p->down, last = g->m * (i + 1) / p->down;
  float *room = room_of(gemm_room(last - first, g->k, g->turned_a));
  gemm_part(g, first, last, panels * j / p->across, panels * (j + 1) / p->across, room);
}

static void gemm_shared(XLA_FFI_CallFrame *frame, Gemm g) {
  Parts p = parts_of(g, threads_of(frame));
  share(frame, gemm_shared_part, &p, p.down * p.across);
}
