// The kernels of `attention.cu` on a processor, compared with plain sums in f64: results and gradients. Compiled with the macros
// that `attention.cu` asks for. Beyond the numbers it proves that no memory is touched outside of tensors (they end where a page
// does, and the next cannot be read), and, by `language.h` and `instructions.h`, that no warp needs another to be slow or fast,
// wherever copies to shared memory arrive.

#include <sys/mman.h>

#include "instructions.h"

#include "../../src/cuda/attention.cu"

// As much as a block can have.
__attribute__((aligned(128))) Half memory[227 * 512];

static void launch(void (*function)(Attention), const Attention& arguments, int length, int rows, int heads, int batch) {
    const Index grid = {static_cast<unsigned>((length + rows - 1) / rows), static_cast<unsigned>(heads), static_cast<unsigned>(batch)};
    const auto before = [] {
        expect_no_copies();
        // NaN, whatever reads it as.
        memset(memory, 0xff, sizeof memory);
    };
    run(grid, {THREADS, 1, 1}, true, [&] { function(arguments); }, before);
    expect_no_copies();
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

static double value(float x) {
    return x;
}

template <class T> static void compare(const char* name, const char* what, const T* found, const std::vector<double>& expected) {
    // Of one key the gradients of queries are zero, but for how sums are rounded.
    double difference = 0, size = 1e-2;
    for (size_t i = 0; i < expected.size(); i++) {
        if (!(std::fabs(value(found[i])) < INFINITY)) fail("not finite");
        difference = max(difference, std::fabs(value(found[i]) - expected[i]));
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

    x.result = guarded<Value>(result.size());
    x.lse = guarded<float>(lse.size());
    x.along = along;
    x.of_query = guarded<Value>(of_query.size());
    x.of_key = guarded<Value>(of_key.size());
    x.of_value = guarded<Value>(of_value.size());
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
