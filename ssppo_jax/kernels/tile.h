// A tile of a product: some rows times one panel of columns, its sums held in registers.

#include "native.h"

enum { PANEL = 48, DEPTH = 192, LINE = 16 };  // columns of a panel; its rows in the nearest cache; floats of a line
enum { TALLEST = MANY ? 8 : 4, WIDTH = 3 };   // rows and vectors of a tile

typedef struct {
  const float *a, *w, *from;  // [rows,depth], [depth,PANEL], sums so far [rows,PANEL] or none
  float *to;                  // [rows,PANEL]
  long lda, ldf, ldt, depth;  // from one row to the next
  const float *next;          // what will be read after w: `fetch` lines of each row are fetched meanwhile
  int fetch;
} Tile;

// to = from + a w, for the first `width` vectors of w's columns. a is stored by rows, or `turned` [depth,TALLEST].
ALWAYS void tile(int rows, int width, const Tile *t, int turned, int ahead) {
  vec sum[TALLEST][WIDTH];
  long row = turned ? 1 : t->lda, step = turned ? TALLEST : 1;
  UNROLL for (int r = 0; r < rows; r++)
    UNROLL for (int v = 0; v < width; v++)
      sum[r][v] = t->from ? *(const vec *)(t->from + r * t->ldf + v * LANES) : (vec){0};
  for (long k = 0; k < t->depth; k++) {
    vec b[WIDTH];
    UNROLL for (int v = 0; v < width; v++) b[v] = *(const vec *)(t->w + k * PANEL + v * LANES);
    if (ahead)
      for (int f = 0; f < t->fetch; f++) __builtin_prefetch(t->next + k * PANEL + f * LINE, 0, 2);
    UNROLL for (int r = 0; r < rows; r++) {
      float a = t->a[r * row + k * step];
      UNROLL for (int v = 0; v < width; v++) sum[r][v] += a * b[v];
    }
  }
  UNROLL for (int r = 0; r < rows; r++)
    UNROLL for (int v = 0; v < width; v++) *(vec *)(t->to + r * t->ldt + v * LANES) = sum[r][v];
}

#define TILE(n, ...) case n: if (n <= TALLEST) tile(n, __VA_ARGS__); break;
#define TILES(name, ...)                                                                                    \
  static void name(int rows, const Tile *t) {                                                               \
    switch (rows) {                                                                                         \
      TILE(1, __VA_ARGS__) TILE(2, __VA_ARGS__) TILE(3, __VA_ARGS__) TILE(4, __VA_ARGS__)                   \
      TILE(5, __VA_ARGS__) TILE(6, __VA_ARGS__) TILE(7, __VA_ARGS__) TILE(8, __VA_ARGS__)                   \
    }                                                                                                       \
  }
TILES(tile_ahead, WIDTH, t, 0, 1)
TILES(tile_wide, WIDTH, t, 0, 0)
TILES(tile_thin, 1, t, 0, 0)
TILES(tile_wide_turned, WIDTH, t, 1, 0)
TILES(tile_thin_turned, 1, t, 1, 0)

// The columns that are wanted of a panel, at least; what is behind them may be written too.
static void tile_columns(int rows, long columns, Tile t, int turned) {
  for (long c = 0; c < columns;) {
    int wide = columns - c > LANES;
    if (turned) (wide ? tile_wide_turned : tile_thin_turned)(rows, &t);
    else (t.fetch ? tile_ahead : wide ? tile_wide : tile_thin)(rows, &t);
    long step = wide ? WIDTH * LANES : LANES;
    c += step, t.w += step, t.to += step, t.fetch = 0;
    if (t.from) t.from += step;
  }
}
