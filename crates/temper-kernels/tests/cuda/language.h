// CUDA's language on a processor: with this in front, kernels compile as C++. A thread of CUDA is a fiber; each runs as far as it
// can, then those that wait for their warp go on together, and those that wait for their block once nobody else can go on. So a
// kernel that needs another order, or lanes that leave their warp, show.

#pragma once

// Else a fiber that goes on where another left counts as an overflow of the stack.
#undef _FORTIFY_SOURCE

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <type_traits>
#include <utility>
#include <vector>

#define __device__
#define __host__
#define __global__
#define __shared__
#define __grid_constant__
#define __forceinline__ inline
#define __restrict__ __restrict
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))

using std::isinf;
using std::isnan;
using std::max;
using std::min;

typedef unsigned int u32;

static void fail(const char* what) {
    fprintf(stderr, "%s\n", what);
    abort();
}

// ---- threads

struct Index {
    unsigned x, y, z;
};

static Index gridDim, blockIdx, blockDim, threadIdx;

constexpr int WARP = 32;

// Where a fiber is.
enum class At { RUN, WARP, BLOCK, END };

struct Fiber {
    ucontext_t start;
    jmp_buf left;
    std::unique_ptr<char[]> stack;
    bool begun = false;
    At at = At::END;
    Index index;
    // What it does with its warp, what it brings, and who took part, a bit for each lane.
    int deed;
    const void* brings;
    u32 present;
};

static std::vector<Fiber> fibers;
static int current, threads;
static jmp_buf scheduler;
static std::function<void()> kernel;

static void leave(At at) {
    fibers[current].at = at;
    if (!_setjmp(fibers[current].left)) _longjmp(scheduler, 1);
}

static void live() {
    for (;;) {
        kernel();
        leave(At::END);
    }
}

static void resume(int fiber) {
    current = fiber;
    Fiber& own = fibers[fiber];
    threadIdx = own.index;
    if (_setjmp(scheduler)) return;
    if (own.begun) _longjmp(own.left, 1);
    own.begun = true;
    setcontext(&own.start);
}

// Lets those of a warp go on that wait for it, once all who still run do.
static bool release(int first) {
    const int end = min(first + WARP, threads);
    u32 present = 0;
    for (int i = first; i < end; i++) {
        if (fibers[i].at == At::RUN) return false;
        if (fibers[i].at == At::WARP) present |= 1u << (i - first);
    }
    if (!present) return false;
    const int deed = fibers[first + __builtin_ctz(present)].deed;
    for (int i = first; i < end; i++) {
        if (fibers[i].at != At::WARP) continue;
        if (fibers[i].deed != deed) fail("lanes of a warp do different things together");
        fibers[i].present = present;
        fibers[i].at = At::RUN;
    }
    return true;
}

static void run_block() {
    constexpr size_t STACK = 1 << 18;
    while (fibers.size() < static_cast<size_t>(threads)) {
        // Contexts know where they lie.
        fibers.reserve(1024);
        Fiber& fiber = fibers.emplace_back();
        fiber.stack.reset(new char[STACK]);
        getcontext(&fiber.start);
        fiber.start.uc_stack.ss_sp = fiber.stack.get();
        fiber.start.uc_stack.ss_size = STACK;
        fiber.start.uc_link = nullptr;
        makecontext(&fiber.start, live, 0);
    }
    for (int i = 0; i < threads; i++) {
        const unsigned number = i;
        fibers[i].index = {number % blockDim.x, number / blockDim.x % blockDim.y, number / blockDim.x / blockDim.y};
        fibers[i].at = At::RUN;
    }
    for (bool waits = true; waits;) {
        for (int first = 0; first < threads; first += WARP)
            do
                for (int i = first; i < min(first + WARP, threads); i++)
                    if (fibers[i].at == At::RUN) resume(i);
            while (release(first));
        waits = false;
        for (int i = 0; i < threads; i++)
            if (fibers[i].at == At::BLOCK) fibers[i].at = At::RUN, waits = true;
    }
}

// Told of what kernels ask of the memory between `begin` and `end`.
struct Watch {
    const char *begin, *end;
    void (*touch)(const void* at, size_t bytes, bool writes);
    void (*end_block)();
};

#ifdef COUNTED
static Watch watch;

#define HOOK(name, parameters, bytes, writes)                                       \
    extern "C" __attribute__((no_sanitize_thread)) void __tsan_##name parameters {  \
        if (at >= watch.begin && at < watch.end) watch.touch(at, bytes, writes);    \
    }
#define HOOKS(bytes)                                               \
    HOOK(read##bytes, (const char* at), bytes, false)              \
    HOOK(write##bytes, (const char* at), bytes, true)              \
    HOOK(unaligned_read##bytes, (const char* at), bytes, false)    \
    HOOK(unaligned_write##bytes, (const char* at), bytes, true)
HOOKS(1)
HOOKS(2)
HOOKS(4)
HOOKS(8)
HOOKS(16)
HOOK(read_range, (const char* at, size_t bytes), bytes, false)
HOOK(write_range, (const char* at, size_t bytes), bytes, true)
#undef HOOKS
#undef HOOK
extern "C" void __tsan_init() {
}

// Some of the blocks, each with the watch.
static void run(const Index& grid, const Index& block, bool, std::function<void()> function, std::function<void()> before) {
    gridDim = grid, blockDim = block, threads = block.x * block.y * block.z, kernel = std::move(function);
    const uint64_t blocks = static_cast<uint64_t>(grid.x) * grid.y * grid.z, samples = min<uint64_t>(blocks, 32);
    for (uint64_t sample = 0; sample < samples; sample++) {
        const uint64_t number = (2 * sample + 1) * blocks / (2 * samples);
        blockIdx = {static_cast<unsigned>(number % grid.x), static_cast<unsigned>(number / grid.x % grid.y),
                    static_cast<unsigned>(number / grid.x / grid.y)};
        before();
        run_block();
        watch.end_block();
    }
}
#else
// All blocks of a kernel. One whose threads never wait for each other needs no fibers.
static void run(const Index& grid, const Index& block, bool meets, std::function<void()> function, std::function<void()> before) {
    gridDim = grid, blockDim = block, threads = block.x * block.y * block.z, kernel = std::move(function);
    for (blockIdx.z = 0; blockIdx.z < grid.z; blockIdx.z++)
        for (blockIdx.y = 0; blockIdx.y < grid.y; blockIdx.y++)
            for (blockIdx.x = 0; blockIdx.x < grid.x; blockIdx.x++) {
                before();
                if (meets) {
                    run_block();
                    continue;
                }
                for (threadIdx.z = 0; threadIdx.z < block.z; threadIdx.z++)
                    for (threadIdx.y = 0; threadIdx.y < block.y; threadIdx.y++)
                        for (threadIdx.x = 0; threadIdx.x < block.x; threadIdx.x++) kernel();
            }
}
#endif

// A kernel with its parameters, which lie where these pointers say.
template <class... Parameters> static std::function<void()> call(void (*function)(Parameters...), void** parameters) {
    return [=] {
        [&]<size_t... I>(std::index_sequence<I...>) {
            function(*static_cast<std::remove_const_t<Parameters>*>(parameters[I])...);
        }(std::index_sequence_for<Parameters...>());
    };
}

inline void __syncthreads() {
    leave(At::BLOCK);
}

inline void __syncwarp(u32 = 0) {
    fibers[current].deed = -1;
    leave(At::WARP);
}

inline void __threadfence() {
}

inline u32 __activemask() {
    return 0xffffffffu;
}

static int lane_number() {
    return current % WARP;
}

// What comes of what each lane brings: `read` asks for that of a lane, which is its own of one that is not there. Nobody goes on
// before all have read.
template <class T, class Read> static auto together(int deed, const T& own, Read read) {
    Fiber& fiber = fibers[current];
    fiber.deed = deed;
    fiber.brings = &own;
    leave(At::WARP);
    const Fiber* const warp = fibers.data() + current / WARP * WARP;
    const u32 present = fiber.present;
    const auto found = read([&](u32 lane) -> const T& {
        return lane < WARP && present >> lane & 1 ? *static_cast<const T*>(warp[lane].brings) : own;
    });
    __syncwarp();
    return found;
}

template <class T> T __shfl_sync(u32, T own, u32 lane) {
    return together(0, own, [&](auto of) { return of(lane % WARP); });
}

template <class T> T __shfl_xor_sync(u32, T own, u32 mask) {
    return together(1, own, [&](auto of) { return of(lane_number() ^ mask); });
}

template <class T> T __shfl_up_sync(u32, T own, u32 by) {
    return together(2, own, [&](auto of) { return of(lane_number() - by); });
}

template <class T> T __shfl_down_sync(u32, T own, u32 by) {
    return together(3, own, [&](auto of) { return of(lane_number() + by); });
}

inline u32 __ballot_sync(u32, bool own) {
    return together(4, own, [](auto of) {
        u32 all = 0;
        for (int lane = 0; lane < WARP; lane++) all |= static_cast<u32>(fibers[current].present >> lane & 1 && of(lane)) << lane;
        return all;
    });
}

inline bool __all_sync(u32 mask, bool own) {
    return !__ballot_sync(mask, !own);
}

inline bool __any_sync(u32 mask, bool own) {
    return __ballot_sync(mask, own);
}

template <class T> T atom_add(T* at, T by) {
    return std::exchange(*at, *at + by);
}

template <class T> T atom_max(T* at, T by) {
    return std::exchange(*at, max(*at, by));
}

template <class T> T atom_min(T* at, T by) {
    return std::exchange(*at, min(*at, by));
}

// ---- numbers

template <class To, class From> static To bits(const From& from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}

// To the nearest, ties to even.
inline uint16_t rounded_f16(float x) {
    const uint16_t sign = std::signbit(x) ? 0x8000 : 0;
    const u32 size = bits<u32>(x) & 0x7fffffff;
    if (size > 0x7f800000) return 0x7fff;
    if (size >= 0x477ff000) return sign | 0x7c00;
    if (size < 0x38800000) return sign | static_cast<uint16_t>(std::nearbyint(std::fabs(x) * 0x1p24f));
    return sign | static_cast<uint16_t>((size - 0x38000000 + 0xfff + (size >> 13 & 1)) >> 13);
}

inline uint16_t rounded_bf16(float x) {
    const u32 all = bits<u32>(x);
    return std::isnan(x) ? 0x7fff : static_cast<uint16_t>((all + 0x7fff + (all >> 16 & 1)) >> 16);
}

inline float of_f16(uint16_t half) {
    const int exponent = half >> 10 & 31, mantissa = half & 1023;
    if (exponent == 0) return (half >> 15 ? -0x1p-24f : 0x1p-24f) * mantissa;
    return bits<float>(static_cast<u32>(half >> 15) << 31 | (exponent == 31 ? 0xffu : exponent + 112u) << 23 | mantissa << 13);
}

inline float of_bf16(uint16_t half) {
    return bits<float>(static_cast<u32>(half) << 16);
}

// f16 or bf16, whose operations round what f32 gives.
template <bool BRAIN> struct HalfOf {
    uint16_t code;

    HalfOf() = default;
    template <class T, class = std::enable_if_t<std::is_arithmetic_v<T>>>
    HalfOf(T x) : code(BRAIN ? rounded_bf16(static_cast<float>(x)) : rounded_f16(static_cast<float>(x))) {}
    operator float() const { return BRAIN ? of_bf16(code) : of_f16(code); }

    HalfOf operator-() const { return HalfOf(-static_cast<float>(*this)); }
    friend HalfOf operator+(HalfOf a, HalfOf b) { return float(a) + float(b); }
    friend HalfOf operator-(HalfOf a, HalfOf b) { return float(a) - float(b); }
    friend HalfOf operator*(HalfOf a, HalfOf b) { return float(a) * float(b); }
    friend HalfOf operator/(HalfOf a, HalfOf b) { return float(a) / float(b); }
    friend bool operator<(HalfOf a, HalfOf b) { return float(a) < float(b); }
    friend bool operator>(HalfOf a, HalfOf b) { return float(a) > float(b); }
    friend bool operator<=(HalfOf a, HalfOf b) { return float(a) <= float(b); }
    friend bool operator>=(HalfOf a, HalfOf b) { return float(a) >= float(b); }
    friend bool operator==(HalfOf a, HalfOf b) { return float(a) == float(b); }
    friend bool operator!=(HalfOf a, HalfOf b) { return float(a) != float(b); }
};

template <bool BRAIN> struct alignas(4) PairOf {
    HalfOf<BRAIN> x, y;

    PairOf operator-() const { return {-x, -y}; }
    friend PairOf operator+(PairOf a, PairOf b) { return {a.x + b.x, a.y + b.y}; }
    friend PairOf operator-(PairOf a, PairOf b) { return {a.x - b.x, a.y - b.y}; }
    friend PairOf operator*(PairOf a, PairOf b) { return {a.x * b.x, a.y * b.y}; }
    friend PairOf operator/(PairOf a, PairOf b) { return {a.x / b.x, a.y / b.y}; }
};

typedef HalfOf<false> __half;
typedef HalfOf<true> __nv_bfloat16;
typedef PairOf<false> __half2;
typedef PairOf<true> __nv_bfloat162;

struct alignas(8) float2 {
    float x, y;
};

inline float2 make_float2(float x, float y) {
    return {x, y};
}

inline float rsqrt(float x) {
    return 1 / std::sqrt(x);
}

// A function of f32 for halves and pairs of them.
#define OF_HALVES(name, pair, function)                                                                     \
    template <bool BRAIN> HalfOf<BRAIN> name(HalfOf<BRAIN> x) { return function(float(x)); }                \
    template <bool BRAIN> PairOf<BRAIN> pair(PairOf<BRAIN> x) { return {name(x.x), name(x.y)}; }
OF_HALVES(hexp, h2exp, std::exp)
OF_HALVES(hlog, h2log, std::log)
OF_HALVES(hsin, h2sin, std::sin)
OF_HALVES(hcos, h2cos, std::cos)
OF_HALVES(htanh, h2tanh, std::tanh)
OF_HALVES(hsqrt, h2sqrt, std::sqrt)
OF_HALVES(hrsqrt, h2rsqrt, rsqrt)
OF_HALVES(hceil, h2ceil, std::ceil)
OF_HALVES(hfloor, h2floor, std::floor)
OF_HALVES(htrunc, h2trunc, std::trunc)
OF_HALVES(hrint, h2rint, std::rint)
OF_HALVES(__habs, __habs2, std::fabs)
#undef OF_HALVES

#define OF_TWO_HALVES(name, pair, expression)                                                                       \
    template <bool BRAIN> HalfOf<BRAIN> name(HalfOf<BRAIN> a, HalfOf<BRAIN> b) { return expression; }               \
    template <bool BRAIN> PairOf<BRAIN> pair(PairOf<BRAIN> a, PairOf<BRAIN> b) { return {name(a.x, b.x), name(a.y, b.y)}; }
OF_TWO_HALVES(__hmax, __hmax2, std::fmax(float(a), float(b)))
OF_TWO_HALVES(__hmin, __hmin2, std::fmin(float(a), float(b)))
OF_TWO_HALVES(__hmax_nan, __hmax2_nan, a != a || b != b ? NAN : std::fmax(float(a), float(b)))
OF_TWO_HALVES(__hmin_nan, __hmin2_nan, a != a || b != b ? NAN : std::fmin(float(a), float(b)))
#undef OF_TWO_HALVES

template <bool BRAIN> HalfOf<BRAIN> __hfma(HalfOf<BRAIN> a, HalfOf<BRAIN> b, HalfOf<BRAIN> c) {
    return std::fma(float(a), float(b), float(c));
}

template <bool BRAIN> PairOf<BRAIN> __hfma2(PairOf<BRAIN> a, PairOf<BRAIN> b, PairOf<BRAIN> c) {
    return {__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y)};
}

template <bool BRAIN> bool __hisnan(HalfOf<BRAIN> x) {
    return x != x;
}

template <bool BRAIN> bool __hisinf(HalfOf<BRAIN> x) {
    return std::isinf(float(x));
}

inline float __expf(float x) {
    return std::exp(x);
}

inline float __powf(float x, float y) {
    return std::pow(x, y);
}

inline float __fdividef(float x, float y) {
    return x / y;
}

inline u32 __umulhi(u32 x, u32 y) {
    return static_cast<uint64_t>(x) * y >> 32;
}

inline int __popc(u32 x) {
    return __builtin_popcount(x);
}

inline int __clz(u32 x) {
    return x ? __builtin_clz(x) : 32;
}

inline int __ffs(u32 x) {
    return __builtin_ffs(x);
}

inline int __float_as_int(float x) {
    return bits<int>(x);
}

inline float __int_as_float(int x) {
    return bits<float>(x);
}

// ---- matrices of a warp, as of `mma.h`. Each lane holds all of one.

namespace nvcuda::wmma {
struct matrix_a;
struct matrix_b;
struct accumulator;
struct row_major;
struct col_major;
namespace precision {
struct tf32;
}
enum layout_t { mem_row_major, mem_col_major };

template <class Use, int M, int N, int K, class T, class Layout = void> struct fragment {
    typedef std::conditional_t<std::is_same_v<T, precision::tf32>, float, T> Element;
    static constexpr int ROWS = std::is_same_v<Use, matrix_b> ? K : M, COLUMNS = std::is_same_v<Use, matrix_a> ? K : N;
    static constexpr int num_elements = ROWS * COLUMNS;
    Element x[num_elements];
};

inline float __float_to_tf32(float x) {
    return bits<float>((bits<u32>(x) + 0x1000) & 0xffffe000);
}

template <class Fragment, class T> void fill_fragment(Fragment& to, T value) {
    std::fill_n(to.x, Fragment::num_elements, typename Fragment::Element(value));
}

template <class Fragment, class T> void copy_in(Fragment& to, const T* from, unsigned pitch, bool by_rows) {
    __syncwarp();
    for (int i = 0; i < Fragment::num_elements; i++) {
        const unsigned row = i / Fragment::COLUMNS, column = i % Fragment::COLUMNS;
        to.x[i] = from[by_rows ? row * pitch + column : column * pitch + row];
    }
    __syncwarp();
}

template <class Use, int M, int N, int K, class T, class Layout, class From>
void load_matrix_sync(fragment<Use, M, N, K, T, Layout>& to, const From* from, unsigned pitch) {
    copy_in(to, from, pitch, std::is_same_v<Layout, row_major>);
}

template <int M, int N, int K, class T, class From>
void load_matrix_sync(fragment<accumulator, M, N, K, T>& to, const From* from, unsigned pitch, layout_t layout) {
    copy_in(to, from, pitch, layout == mem_row_major);
}

template <class To, class Fragment> void store_matrix_sync(To* to, const Fragment& from, unsigned pitch, layout_t layout) {
    __syncwarp();
    for (int i = lane_number(); i < Fragment::num_elements; i += WARP) {
        const unsigned row = i / Fragment::COLUMNS, column = i % Fragment::COLUMNS;
        to[layout == mem_row_major ? row * pitch + column : column * pitch + row] = from.x[i];
    }
    __syncwarp();
}

template <int M, int N, int K, class A, class LayoutA, class B, class LayoutB, class D, class C>
void mma_sync(fragment<accumulator, M, N, K, D>& d, const fragment<matrix_a, M, N, K, A, LayoutA>& a,
              const fragment<matrix_b, M, N, K, B, LayoutB>& b, const fragment<accumulator, M, N, K, C>& c) {
    for (int row = 0; row < M; row++) {
        float sums[N];
        std::copy_n(c.x + row * N, N, sums);
        for (int k = 0; k < K; k++)
            for (int column = 0; column < N; column++) sums[column] += float(a.x[row * K + k]) * float(b.x[k * N + column]);
        std::copy_n(sums, N, d.x + row * N);
    }
}
}  // namespace nvcuda::wmma
