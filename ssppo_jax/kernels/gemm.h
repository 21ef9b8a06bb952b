// Products of matrices, for all kernels. A second factor that is used once is packed a block at a time on the way.
//
// An entry of c is summed in an order that depends on nothing but k.

#include "tile.h"

enum { CHUNK = 256 };  // rows of c done with one packed block

enum { PLAIN, TURNED, PACKED };  // a factor is stored as it is, as its transpose, or (b) in panels [panels,k,PANEL]

typedef struct {
  const float *a, *b;  // [m,k], [k,n]
  float *c;            // [m,n] = a b
  long m, n, k;
  long lda, ldb, ldc;  // from one row to the next, as they are stored
  int a_is, b_is;
  int more;  // added to what c holds
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
  if (g->b_is == PLAIN) {
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
  long j = index * PANEL, columns = g->n - j < PANEL ? g->n - j : PANEL, partial = columns < PANEL;
  long blocks = (g->k + DEPTH - 1) / DEPTH, tiles = (rows + TALLEST - 1) / TALLEST;
  float *c = g->c + first * g->ldc + j;
  for (long r = 0; partial && g->more && r < rows; r++)
    memcpy(sums + r * PANEL, c + r * g->ldc, sizeof(float) * columns);
  for (long n = 0; n < blocks; n++) {
    long k = g->k * n / blocks, depth = g->k * (n + 1) / blocks - k, ready = n == blocks - 1 && !partial;
    const float *w = g->b_is == PACKED ? g->b + (index * g->k + k) * PANEL : block;
    if (w == block) pack_block(g, k, depth, j, columns, block);
    for (long i = 0; i < tiles; i++) {
      long row = rows * i / tiles, count = rows * (i + 1) / tiles - row;
      float *held = sums + row * PANEL, *at = c + row * g->ldc;
      const float *a = turned ? turned + (i * g->k + k) * TALLEST : g->a + (first + row) * g->lda + k;
      const float *from = n || (g->more && partial) ? held : g->more ? at : 0;
      Tile t = {a, w, from, ready ? at : held, g->lda, from == at ? g->ldc : PANEL, ready ? g->ldc : PANEL, depth};
      if (w != block) {  // from memory, once: each tile fetches its share of the next block
        int lines = PANEL / LINE, line = (int)(lines * i / tiles);
        t.next = w + depth * PANEL + line * LINE, t.fetch = (int)(lines * (i + 1) / tiles) - line;
      }
      tile_columns((int)count, columns, t, turned != 0);
    }
  }
  for (long r = 0; partial && r < rows; r++) memcpy(c + r * g->ldc, sums + r * PANEL, sizeof(float) * columns);
}

// Some rows of some panels of c; `room` as `gemm_room` says.
static void gemm_part(const Gemm *g, long first, long last, long begin, long end, float *room) {
  float *block = room, *sums = block + DEPTH * PANEL, *turned = g->a_is == TURNED ? sums + CHUNK * PANEL : 0;
  for (; first < last; first += CHUNK) {
    long rows = last - first < CHUNK ? last - first : CHUNK;
    if (turned) pack_rows(g, first, rows, turned);
    for (long n = begin; n < end; n++) gemm_panel(g, first, rows, n, block, sums, turned);
  }
}

static long gemm_room(long m, long k, int a_is) {  // floats
  long rows = (m < CHUNK ? m : CHUNK) + TALLEST;
  return DEPTH * PANEL + CHUNK * PANEL + (a_is == TURNED ? rows * k : 0);
}

static void gemm(const Gemm *g, float *room) { gemm_part(g, 0, g->m, 0, (g->n + PANEL - 1) / PANEL, room); }

// ---- shared out to threads ----

typedef struct {
  Gemm g;
  long down, across;  // parts of the rows, of the panels
} Parts;

typedef struct {
  long first, last, begin, end;  // rows, panels
} Part;

static Parts parts_of(Gemm g, long threads) {
  long panels = (g.n + PANEL - 1) / PANEL, down = (g.m + CHUNK - 1) / CHUNK, across = (4 * threads + down - 1) / down;
  return (Parts){g, down, across < panels ? across : panels};
}

// Neighbouring panels, so that what is fetched ahead is what the same thread reads next.
static Part part_of(const Parts *p, long index) {
  long panels = (p->g.n + PANEL - 1) / PANEL, i = index / p->across, j = index % p->across;
  return (Part){p->g.m * i / p->down, p->g.m * (i + 1) / p->down, panels * j / p->across, panels * (j + 1) / p->across};
}

static void gemm_shared_part(const void *what, long index) {
  const Parts *p = what;
  Part at = part_of(p, index);
  float *room = room_of(gemm_room(at.last - at.first, p->g.k, p->g.a_is));
  gemm_part(&p->g, at.first, at.last, at.begin, at.end, room);
}

static void gemm_shared(XLA_FFI_CallFrame *frame, Gemm g) {
  Parts p = parts_of(g, threads_of(frame));
  share(frame, gemm_shared_part, &p, p.down * p.across);
}
