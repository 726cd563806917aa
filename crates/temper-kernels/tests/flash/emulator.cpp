// Runs the kernels of `attention.cu` on a processor, a thread of CUDA as a fiber each, and compares results and gradients with
// plain sums in f64. Compiled with the macros that `attention.cu` asks for. Beyond the numbers it proves that no memory is
// touched outside of tensors (they end where a page does, and the next cannot be read), that no warp needs another to be slow or
// fast (each runs as far as it can, and copies to shared memory arrive as late as they may, then as early as they may), and that
// every lane of a warp takes part in what the warp does together.

#include <ucontext.h>

#include <sys/mman.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

typedef unsigned short Half;
typedef unsigned int u32;

// ---- the language

#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(threads)
#define __shared__
#define __align__(bytes) __attribute__((aligned(bytes)))

using std::max;
using std::min;

struct Index {
    unsigned x, y, z;
};

struct float2 {
    float x, y;
};

static float2 make_float2(float x, float y) {
    return {x, y};
}

static Index blockIdx, gridDim;
#define LOWEST (-INFINITY)

static void fail(const char* what) {
    fprintf(stderr, "%s\n", what);
    exit(1);
}

// ---- threads

constexpr int BLOCK = 128, WARP = 32;

struct Copy {
    void* to;
    const void* from;
    int bytes;
    bool there;
};

struct Fiber {
    ucontext_t context;
    std::unique_ptr<char[]> stack;
    // Whether it has returned; whether it is where its block meets.
    bool done, meets;
    // How often it met its warp and its block.
    long warps, blocks;
    // Copies on their way, by commit, the last not committed yet.
    std::vector<std::vector<Copy>> copies;
};

static Fiber fibers[BLOCK];
static ucontext_t scheduler;
static int current;
static std::function<void()> kernel;
// Whether copies arrive at once, or when they are waited for.
static bool early;
#define threadIdx (Index{static_cast<unsigned>(current), 0, 0})

static void pause_fiber() {
    swapcontext(&fibers[current].context, &scheduler);
}

// Until all of the warp, or of the block, are here.
static void meet(long Fiber::*times, int size) {
    Fiber* const all = fibers + current / size * size;
    const long time = ++(fibers[current].*times);
    while (std::any_of(all, all + size, [&](Fiber& other) { return other.*times < time; })) pause_fiber();
}

static void __syncthreads() {
    fibers[current].meets = true;
    meet(&Fiber::blocks, BLOCK);
    fibers[current].meets = false;
}

// What each lane of the warp brings. Two places: nobody writes the next but one before all have read this.
template <class T> static const T* exchange(const T& own) {
    static T places[2][BLOCK];
    T* const warp = places[fibers[current].warps % 2] + current / WARP * WARP;
    warp[current % WARP] = own;
    meet(&Fiber::warps, WARP);
    return warp;
}

static void begin() {
    kernel();
    if (fibers[current].copies.size() > 2) fail("more copies under way than the kernel waits for");
    fibers[current].done = true;
    swapcontext(&fibers[current].context, &scheduler);
}

// ---- instructions

static float value(Half half) {
#if F16
    const int exponent = half >> 10 & 31, mantissa = half & 1023;
    const float size = exponent == 31 ? (mantissa ? NAN : INFINITY)
                       : exponent     ? std::ldexp(1024.0f + mantissa, exponent - 25)
                                      : std::ldexp(static_cast<float>(mantissa), -24);
    return half >> 15 ? -size : size;
#else
    const u32 bits = static_cast<u32>(half) << 16;
    float all;
    memcpy(&all, &bits, 4);
    return all;
#endif
}

// To the nearest, ties to even.
static Half rounded_one(float x) {
#if F16
    const Half sign = std::signbit(x) ? 0x8000 : 0;
    const float size = std::fabs(x);
    if (std::isnan(size)) return 0x7fff;
    if (size >= 65520.0f) return sign | 0x7c00;
    if (size < std::ldexp(1.0f, -14)) return sign | static_cast<Half>(std::nearbyint(std::ldexp(size, 24)));
    int exponent;
    std::frexp(size, &exponent);
    const int mantissa = static_cast<int>(std::nearbyint(std::ldexp(size, 11 - exponent)));
    return sign | static_cast<Half>(((exponent + 14) << 10) + (mantissa - 1024));
#else
    u32 bits;
    memcpy(&bits, &x, 4);
    if (std::isnan(x)) return 0x7fff;
    return static_cast<Half>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
#endif
}

static u32 rounded(float low, float high) {
    return rounded_one(low) | static_cast<u32>(rounded_one(high)) << 16;
}

static u32 pair(const Half* low, const Half* high) {
    return *low | static_cast<u32>(*high) << 16;
}

static void aligned(const void* at, size_t bytes) {
    if (reinterpret_cast<uintptr_t>(at) % bytes) fail("an address that is not aligned");
}

static void load(u32 (&to)[4], const Half* row) {
    aligned(row, 16);
    const Half* const* const rows = exchange(row);
    const int lane = current % WARP;
    for (int i = 0; i < 4; i++) {
        const Half* const from = rows[8 * i + lane / 4] + lane % 4 * 2;
        to[i] = pair(from, from + 1);
    }
    meet(&Fiber::warps, WARP);
}

static void load_transposed(u32 (&to)[4], const Half* row) {
    aligned(row, 16);
    const Half* const* const rows = exchange(row);
    const int lane = current % WARP;
    for (int i = 0; i < 4; i++) to[i] = pair(rows[8 * i + lane % 4 * 2] + lane / 4, rows[8 * i + lane % 4 * 2 + 1] + lane / 4);
    meet(&Fiber::warps, WARP);
}

// Fragments as the PTX manual draws them for mma.m16n8k16.
static void multiply(float (&sum)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    struct Operands {
        float a[8], b[4];
    } own;
    for (int i = 0; i < 4; i++) {
        own.a[2 * i] = value(a[i] & 0xffff);
        own.a[2 * i + 1] = value(a[i] >> 16);
    }
    own.b[0] = value(b0 & 0xffff), own.b[1] = value(b0 >> 16), own.b[2] = value(b1 & 0xffff), own.b[3] = value(b1 >> 16);
    const Operands* const warp = exchange(own);
    const int lane = current % WARP;
    for (int i = 0; i < 4; i++) {
        const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
        for (int k = 0; k < 16; k++) {
            const float left = warp[row % 8 * 4 + k % 8 / 2].a[(k / 8 * 2 + row / 8) * 2 + k % 2];
            sum[i] += left * warp[column * 4 + k % 8 / 2].b[k / 8 * 2 + k % 2];
        }
    }
}

static float exp2_of(float x) {
    return std::exp2(x);
}

static float __shfl_xor_sync(u32 mask, float own, int other) {
    if (mask != 0xffffffffu) fail("a part of a warp");
    return exchange(own)[current % WARP ^ other];
}

static void arrive(const Copy& copy) {
    if (copy.there)
        memcpy(copy.to, copy.from, copy.bytes);
    else
        memset(copy.to, 0, copy.bytes);
}

static void copy(const Copy& copy) {
    aligned(copy.to, copy.bytes);
    aligned(copy.from, copy.bytes);
    if (early)
        arrive(copy);
    else
        fibers[current].copies.back().push_back(copy);
}

static void copy16(void* to, const void* from, bool there) {
    copy({to, from, 16, there});
}

static void copy4(void* to, const void* from, bool there) {
    copy({to, from, 4, there});
}

static void commit() {
    fibers[current].copies.emplace_back();
}

template <int OPEN> static void wait() {
    auto& copies = fibers[current].copies;
    while (copies.size() > OPEN + 1) {
        std::for_each(copies.front().begin(), copies.front().end(), arrive);
        copies.erase(copies.begin());
    }
}

#include "../../src/cuda/attention.cu"

// As much as a block can have.
__attribute__((aligned(128))) Half memory[227 * 512];

static void run_block() {
    // NaN, whatever reads it as.
    memset(memory, 0xff, sizeof memory);
    for (Fiber& fiber : fibers) {
        constexpr size_t STACK = 1 << 16;
        if (!fiber.stack) fiber.stack = std::make_unique<char[]>(STACK);
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = fiber.stack.get();
        fiber.context.uc_stack.ss_size = STACK;
        fiber.context.uc_link = nullptr;
        makecontext(&fiber.context, begin, 0);
        fiber.done = fiber.meets = false;
        fiber.warps = fiber.blocks = 0;
        fiber.copies.assign(1, {});
    }
    const auto resume = [](int fiber) {
        current = fiber;
        if (!fibers[fiber].done) swapcontext(&scheduler, &fibers[fiber].context);
    };
    while (!std::all_of(fibers, fibers + BLOCK, [](Fiber& fiber) { return fiber.done; }))
        for (int warp = 0; warp < BLOCK; warp += WARP) {
            // Those that met go on; then all of the warp until they meet.
            for (int lane = 0; lane < WARP; lane++) resume(warp + lane);
            while (std::any_of(fibers + warp, fibers + warp + WARP, [](Fiber& fiber) { return !fiber.done && !fiber.meets; }))
                for (int lane = 0; lane < WARP; lane++) resume(warp + lane);
        }
    for (int i = 0; i < BLOCK; i++)
        if (fibers[i].warps != fibers[i / WARP * WARP].warps) fail("a lane left its warp");
}

static void launch(void (*function)(Attention), const Attention& arguments, int length, int rows, int heads, int batch) {
    gridDim = {static_cast<unsigned>((length + rows - 1) / rows), static_cast<unsigned>(heads), static_cast<unsigned>(batch)};
    kernel = [&] { function(arguments); };
    for (blockIdx.z = 0; blockIdx.z < gridDim.z; blockIdx.z++)
        for (blockIdx.y = 0; blockIdx.y < gridDim.y; blockIdx.y++)
            for (blockIdx.x = 0; blockIdx.x < gridDim.x; blockIdx.x++) run_block();
}

// ---- tensors

// Memory that ends where a page does, behind which nothing can be read.
template <class T> static T* guarded(size_t count) {
    constexpr size_t PAGE = 4096;
    const size_t bytes = count * sizeof(T), pages = (bytes + PAGE - 1) / PAGE * PAGE;
    char* const all = static_cast<char*>(mmap(nullptr, pages + PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (all == MAP_FAILED || mprotect(all + pages, PAGE, PROT_NONE)) fail("no memory");
    return reinterpret_cast<T*>(all + pages - bytes);
}

static float random_value() {
    static uint64_t state = 42;
    state = state * 6364136223846793005u + 1442695040888963407u;
    return static_cast<float>(state >> 40) / (1 << 23) - 1.0f;
}

struct Case {
    const char* name;
    int batch, queries, heads, keys, shared;
    bool apart;
    // The keys that a query of a row sees.
    std::function<std::pair<int, int>(int, int)> range;
    // Heads before rows in memory, as layers give them, or after.
    bool outer;
};

// [B, rows, heads, FEATURES], rounded.
struct Tensor {
    Matrix matrix;
    Tensor(int batch, int rows, int heads, bool outer) {
        Half* const all = guarded<Half>(static_cast<size_t>(batch) * rows * heads * FEATURES);
        for (int i = 0; i < batch * rows * heads * FEATURES; i++) all[i] = rounded_one(random_value());
        matrix = {all, static_cast<long long>(rows) * heads * FEATURES, (outer ? 1 : heads) * FEATURES, (outer ? rows : 1) * FEATURES};
    }
    double at(int batch, int row, int head, int feature) const {
        return value(matrix.at[batch * matrix.batch + row * matrix.row + head * matrix.head + feature]);
    }
};

static void compare(const char* name, const char* what, const float* found, const std::vector<double>& expected) {
    // Of one key the gradients of queries are zero, but for how sums are rounded.
    double difference = 0, size = 1e-2;
    for (size_t i = 0; i < expected.size(); i++) {
        if (!(std::fabs(found[i]) < INFINITY)) fail("not finite");
        difference = max(difference, std::fabs(found[i] - expected[i]));
        size = max(size, std::fabs(expected[i]));
    }
    // Weights are rounded once on the way to the result, and differences of rounded values are smaller than those.
    const double tolerance = F16 ? 1e-3 : 8e-3;
    if (difference > tolerance * size) {
        fprintf(stderr, "%s: %s differs by %g of %g\n", name, what, difference, size);
        exit(1);
    }
    printf("%s: %s differs by %.1e of its largest\n", name, what, difference / size);
}

static void check(const Case& c) {
    const Tensor query(c.batch, c.queries, c.heads, c.outer), key(c.batch, c.keys, c.shared, c.outer);
    const Tensor value(c.batch, c.keys, c.shared, c.outer), grad(c.batch, c.queries, c.heads, c.outer);
    Attention x{};
    x.query = query.matrix, x.key = key.matrix, x.value = value.matrix, x.grad = grad.matrix;
    x.queries = c.queries, x.keys = c.keys, x.heads = c.heads, x.shared = c.shared, x.apart = c.apart;
    x.scale = 0.3f;
#if DROPS
    x.first = 5, x.second = 9, x.threshold = 1288490188u, x.kept = 1.0f / 0.7f;
#endif
    const int rows = c.apart ? c.batch : 1, spans = (c.queries + SPAN - 1) / SPAN;
    u32* const ranges = guarded<u32>(2 * rows * c.queries);
    int* const table = guarded<int>(4 * rows * spans);
    x.ranges = ranges, x.spans = table;
    for (int row = 0; row < rows; row++)
        for (int span = 0; span < spans; span++) {
            int from = c.keys, to = 0, all_from = 0, all_to = c.keys;
            for (int i = span * SPAN; i < (span + 1) * SPAN; i++) {
                const auto [begin, end] = i < c.queries ? c.range(row, i) : std::pair(0, 0);
                if (i < c.queries) ranges[2 * (row * c.queries + i)] = begin, ranges[2 * (row * c.queries + i) + 1] = end;
                if (begin < end)
                    from = min(from, begin), to = max(to, end), all_from = max(all_from, begin), all_to = min(all_to, end);
                else
                    all_to = 0;
            }
            const int own[4] = {to ? from : 0, to, all_from, all_to};
            memcpy(table + 4 * (row * spans + span), own, sizeof own);
        }

    const size_t of_queries_size = static_cast<size_t>(c.batch) * c.queries * c.heads;
    const size_t of_keys_size = static_cast<size_t>(c.batch) * c.keys * c.shared * FEATURES;
    std::vector<double> result(of_queries_size * FEATURES), lse(of_queries_size);
    std::vector<double> of_query(result.size()), of_key(of_keys_size), of_value(of_keys_size);
    float* const along = guarded<float>(of_queries_size);
    for (int b = 0; b < c.batch; b++)
        for (int head = 0; head < c.heads; head++)
            for (int q = 0; q < c.queries; q++) {
                const int other = head / (c.heads / c.shared);
                const auto [from, to] = c.range(c.apart ? b : 0, q);
                const size_t own = ((static_cast<size_t>(b) * c.queries + q) * c.heads + head) * FEATURES;
                const size_t number = (static_cast<size_t>(b) * c.heads + head) * c.queries + q;
                std::vector<double> weights(c.keys), slopes(c.keys);
                double sum = 0, carried = 0;
                for (int k = from; k < to; k++) {
                    double score = 0, slope = 0;
                    for (int i = 0; i < FEATURES; i++) {
                        score += query.at(b, q, head, i) * key.at(b, k, other, i);
                        slope += grad.at(b, q, head, i) * value.at(b, k, other, i);
                    }
                    weights[k] = std::exp(score * 0.3f), slopes[k] = slope;
                    sum += weights[k];
                }
                lse[number] = sum ? std::log(sum) : 0;
                for (int k = from; k < to; k++) {
                    weights[k] /= sum;
#if DROPS
                    const double kept = factor(x, b, head, q, k);
#else
                    const double kept = 1;
#endif
                    slopes[k] *= kept;
                    carried += weights[k] * slopes[k];
                    for (int i = 0; i < FEATURES; i++) {
                        result[own + i] += weights[k] * kept * value.at(b, k, other, i);
                        of_value[((static_cast<size_t>(b) * c.keys + k) * c.shared + other) * FEATURES + i] +=
                            weights[k] * kept * grad.at(b, q, head, i);
                    }
                }
                along[number] = static_cast<float>(carried);
                for (int k = from; k < to; k++) {
                    const double slope = weights[k] * (slopes[k] - carried) * 0.3f;
                    for (int i = 0; i < FEATURES; i++) {
                        of_query[own + i] += slope * key.at(b, k, other, i);
                        of_key[((static_cast<size_t>(b) * c.keys + k) * c.shared + other) * FEATURES + i] += slope * query.at(b, q, head, i);
                    }
                }
            }

    x.result = guarded<float>(result.size());
    x.lse = guarded<float>(lse.size());
    x.along = along;
    x.of_query = guarded<float>(of_query.size());
    x.of_key = guarded<float>(of_key.size());
    x.of_value = guarded<float>(of_value.size());
    for (const bool arrival : {false, true}) {
        early = arrival;
        launch(forward, x, c.queries, 16 * FORWARD_TILES * WARPS, c.heads, c.batch);
        compare(c.name, "the result", x.result, result);
        compare(c.name, "ln of the divisor", x.lse, lse);
        launch(of_queries, x, c.queries, 16 * QUERIES_TILES * WARPS, c.heads, c.batch);
        compare(c.name, "the gradient of queries", x.of_query, of_query);
        launch(of_keys, x, c.keys, 16 * KEYS_TILES * WARPS, c.shared, c.batch);
        compare(c.name, "the gradient of keys", x.of_key, of_key);
        compare(c.name, "the gradient of values", x.of_value, of_value);
    }
}

int main() {
    const auto causal = [](int, int query) { return std::pair(0, query + 1); };
    // A window; each row of the batch begins with a text of its own length.
    const auto packed = [](int row, int query) {
        const int text = query >= row + 70 ? row + 70 : 0;
        return std::pair(max(text, query - 49), query + 1);
    };
    // Padding, and some queries that see nothing.
    const auto ragged = [](int row, int query) { return query % 67 < 3 ? std::pair(0, 0) : std::pair(0, 60 - 23 * row); };
    const auto cross = [](int, int) { return std::pair(5, 140); };
    check({"one", 1, 1, 1, 1, 1, false, causal, false});
    check({"causal", 1, 150, 2, 150, 1, false, causal, true});
    check({"packed", 2, 140, 3, 140, 3, true, packed, true});
    check({"ragged", 2, 70, 2, 60, 2, true, ragged, false});
    check({"cross", 1, 66, 4, 150, 2, false, cross, true});
}
