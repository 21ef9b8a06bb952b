// What every kernel here needs: vectors, work shared out to XLA's threads, and the buffers of a call.

#pragma once

#include <math.h>
#include <sched.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "xla/ffi/api/c_api.h"

#define ALWAYS static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")
#ifdef __ARM_NEON
#define NEON 1
#else
#define NEON 0
#endif

// What the processor has: floats of a vector, and how many vectors a loop can hold in registers.
#if defined(__AVX512F__)
enum { LANES = 16, MANY = 1 };
#elif defined(__AVX__)
enum { LANES = 8, MANY = 0 };
#else
enum { LANES = 4, MANY = NEON };
#endif
typedef float vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef float quad __attribute__((vector_size(16), aligned(4), may_alias));

// e^x to 2 units in the last place for x <= 0; what would be below the smallest normal number is 0.
ALWAYS float exponential(float x) {
  float n = x * 1.44269504f + 12582912.0f - 12582912.0f;  // nearest whole number
  float r = x - n * 0.693359375f + n * 2.12194440e-4f;
  float s = 1.9875691500e-4f;
  s = s * r + 1.3981999507e-3f, s = s * r + 8.3334519073e-3f, s = s * r + 4.1665795894e-2f;
  s = s * r + 1.6666665459e-1f, s = s * r + 5.0000001201e-1f;
  s = s * r * r + r + 1.0f;
  int32_t bits = ((int32_t)n + 127) << 23;
  float power;
  memcpy(&power, &bits, sizeof power);
  return x < -87.0f ? 0.0f : s * power;
}

// A thread's own, kept for its next part: memory that is given back costs a page fault for every 4 KiB.
static float *room_of(long floats) {
  static _Thread_local float *room;
  static _Thread_local long size;
  if (floats > size) free(room), room = aligned_alloc(64, (sizeof(float) * floats + 63) / 64 * 64), size = floats;
  return room;
}

// ---- work shared out to XLA's threads ----

typedef struct {
  void (*part)(const void *what, long index);
  const void *what;  // the caller's; not looked at once all parts are taken
  long parts;
  atomic_long next, done;
  atomic_int holders;
} Work;

static void take(Work *work) {
  for (long n; (n = atomic_fetch_add(&work->next, 1)) < work->parts; atomic_fetch_add(&work->done, 1))
    work->part(work->what, n);
}

static void leave(Work *work) {
  if (atomic_fetch_sub(&work->holders, 1) == 1) free(work);
}

static void help(void *work) {
  take(work);
  leave(work);
}

static int scheduled(XLA_FFI_CallFrame *frame, Work *work) {
  XLA_FFI_ThreadPool_Schedule_Args args = {XLA_FFI_ThreadPool_Schedule_Args_STRUCT_SIZE, 0, frame->ctx, help, work};
  XLA_FFI_Error *error = frame->api->XLA_FFI_ThreadPool_Schedule(&args);
  if (!error) return 1;
  XLA_FFI_Error_Destroy_Args destroy = {XLA_FFI_Error_Destroy_Args_STRUCT_SIZE, 0, error};
  frame->api->XLA_FFI_Error_Destroy(&destroy);
  return 0;
}

static long threads_of(XLA_FFI_CallFrame *frame) {
  int64_t threads = 1;
  XLA_FFI_ThreadPool_NumThreads_Args args = {XLA_FFI_ThreadPool_NumThreads_Args_STRUCT_SIZE, 0, frame->ctx, &threads};
  XLA_FFI_Error *error = frame->api->XLA_FFI_ThreadPool_NumThreads(&args);
  if (!error) return threads;
  XLA_FFI_Error_Destroy_Args destroy = {XLA_FFI_Error_Destroy_Args_STRUCT_SIZE, 0, error};
  frame->api->XLA_FFI_Error_Destroy(&destroy);
  return 1;
}

// All parts, each once; the caller works too, and waits only for parts that a helper has begun.
static void share(XLA_FFI_CallFrame *frame, void (*part)(const void *, long), const void *what, long parts) {
  long helpers = threads_of(frame) - 1;
  if (helpers > parts - 1) helpers = parts - 1;
  Work *work = helpers > 0 ? malloc(sizeof(Work)) : 0;
  if (!work) {
    for (long n = 0; n < parts; n++) part(what, n);
    return;
  }
  work->part = part, work->what = what, work->parts = parts;
  atomic_init(&work->next, 0), atomic_init(&work->done, 0), atomic_init(&work->holders, (int)helpers + 1);
  for (long n = 0; n < helpers; n++)
    if (!scheduled(frame, work)) leave(work);
  take(work);
  for (long spins = 0; atomic_load(&work->done) < parts; spins++)
    if (spins > 4096) sched_yield();
  leave(work);
}

// ---- a call by XLA ----

static int is_question(XLA_FFI_CallFrame *frame) {  // which version this was compiled for
  if (!frame->extension_start || frame->extension_start->type != XLA_FFI_Extension_Metadata) return 0;
  XLA_FFI_Metadata *metadata = ((XLA_FFI_Metadata_Extension *)frame->extension_start)->metadata;
  metadata->api_version.major_version = XLA_FFI_API_MAJOR;
  metadata->api_version.minor_version = XLA_FFI_API_MINOR;
  return 1;
}

static const XLA_FFI_Buffer *given(XLA_FFI_CallFrame *frame, int n) { return frame->args.args[n]; }
static void *data(XLA_FFI_CallFrame *frame, int n) { return given(frame, n)->data; }
static int32_t whole(XLA_FFI_CallFrame *frame, int n) { return *(int32_t *)data(frame, n); }
static float *result(XLA_FFI_CallFrame *frame, int n) { return ((XLA_FFI_Buffer *)frame->rets.rets[n])->data; }
static float number(XLA_FFI_CallFrame *frame, int n) {
  return *(float *)((XLA_FFI_Scalar *)frame->attrs.attrs[n])->value;
}
static int64_t integer(XLA_FFI_CallFrame *frame, int n) {
  return *(int64_t *)((XLA_FFI_Scalar *)frame->attrs.attrs[n])->value;
}
