// Attention on tensor cores whose scores stay in registers, as in FlashAttention-2 (Dao 2023, arXiv:2307.08691), for compute
// capability 8.0 and more. Compiled at run time for:
//
// FEATURES                 features of a head, a multiple of 16
// F16                      whether operands are f16; else bf16
// DROPS                    whether there is dropout
// KEEPS                    whether rows of a block wait in registers, not in shared memory
// FORWARD, QUERIES, KEYS   of the three kernels: 16 rows of a block times how many one warp takes, and how many columns are in
//                          sight at once, as FORWARD_TILES and FORWARD_WIDTH
//
// Nothing depends on the order in which blocks run: gradients of queries and of keys have a kernel each, and no sum is atomic.
// Scores, weights and sums are f32; weights and their gradients are rounded as operands of the products that follow.

constexpr int WARPS = 4;
constexpr int THREADS = 32 * WARPS;
// Elements from a row to the next in shared memory: rows that follow each other lie in different banks.
constexpr int PITCH = FEATURES + 8;
constexpr int STEPS = FEATURES / 16;
// Queries that share an entry of `spans`.
constexpr int SPAN = 64;
constexpr float LOG2_E = 1.4426950408889634f;

// [B, rows, heads, FEATURES], with the elements from one to the next.
struct Matrix {
    const Half* at;
    long long batch, row, head;
};

// Results and gradients: as operands, or f32 where values may be beyond the range of f16.
#if F16
typedef float Value;
#else
typedef Half Value;
#endif

struct Attention {
    Matrix query, key, value, grad;
    // [B, S, N, FEATURES]; [B, N, S], of the last two ln of the softmax's divisor, and <grad, result>.
    Value* result;
    float* lse;
    const float* along;
    // [B, S, N, FEATURES], [B, keys, K, FEATURES].
    Value* of_query;
    Value* of_key;
    Value* of_value;
    // The first key that each query sees and the one after the last; of each SPAN of queries the least of the first, the most
    // of the second, then the most of the first and the least of the second. With rows apart, for each row of the batch.
    const u32* ranges;
    const int* spans;
    int queries, keys, heads, shared, apart;
    float scale;
    // Dropout: two keys of its hash, its threshold, what the rest is multiplied with.
    u32 first, second, threshold;
    float kept;
};

// ---- pieces

__device__ __forceinline__ int lane() {
    return threadIdx.x % 32;
}

// Rows of a head from `first` on, to shared memory.
template <int ROWS> __device__ __forceinline__ void fetch(Half* to, const Matrix& matrix, int batch, int head, int first, int limit) {
    constexpr int PARTS = FEATURES / 8;
    const Half* from = matrix.at + batch * matrix.batch + head * matrix.head;
#pragma unroll
    for (int i = threadIdx.x; i < ROWS * PARTS; i += THREADS) {
        const int row = i / PARTS, part = i % PARTS * 8;
        const bool there = first + row < limit;
        copy16(to + row * PITCH + part, from + (there ? (first + row) * matrix.row : 0) + part, there);
    }
}

// The rows of a block that belong to this warp, 16 · TILES of them, as the left side of products.
template <int TILES> struct Rows {
    const Half* from;
    u32 held[KEEPS ? TILES : 1][KEEPS ? STEPS : 1][4];

    __device__ __forceinline__ Rows(const Half* block)
        : from(block + (threadIdx.x / 32 * 16 * TILES + lane() % 16) * PITCH + lane() / 16 * 8) {
        if constexpr (KEEPS) {
#pragma unroll
            for (int tile = 0; tile < TILES; tile++)
#pragma unroll
                for (int step = 0; step < STEPS; step++) load(held[tile][step], from + tile * 16 * PITCH + step * 16);
        }
    }

    // sum = these · bᵀ, of `b` as many rows in shared memory as the sum has columns.
    template <int COLUMNS> __device__ __forceinline__ void by_rows(float (&sum)[TILES][COLUMNS][4], const Half* b) {
        b += (lane() / 16 * 8 + lane() % 8) * PITCH + lane() / 8 % 2 * 8;
#pragma unroll
        for (int tile = 0; tile < TILES; tile++)
#pragma unroll
            for (int column = 0; column < COLUMNS; column++)
#pragma unroll
                for (int i = 0; i < 4; i++) sum[tile][column][i] = 0.0f;
#pragma unroll
        for (int step = 0; step < STEPS; step++) {
            if constexpr (!KEEPS) {
                u32 own[TILES][4];
#pragma unroll
                for (int tile = 0; tile < TILES; tile++) load(own[tile], from + tile * 16 * PITCH + step * 16);
                step_by_rows(sum, own, b, step);
            } else {
                u32 own[TILES][4];
#pragma unroll
                for (int tile = 0; tile < TILES; tile++)
#pragma unroll
                    for (int i = 0; i < 4; i++) own[tile][i] = held[tile][step][i];
                step_by_rows(sum, own, b, step);
            }
        }
    }

    template <int COLUMNS>
    __device__ __forceinline__ void step_by_rows(float (&sum)[TILES][COLUMNS][4], const u32 (&own)[TILES][4], const Half* b, int step) {
#pragma unroll
        for (int pair = 0; pair < COLUMNS / 2; pair++) {
            u32 other[4];
            load(other, b + pair * 16 * PITCH + step * 16);
#pragma unroll
            for (int tile = 0; tile < TILES; tile++) {
                multiply(sum[tile][2 * pair], own[tile], other[0], other[1]);
                multiply(sum[tile][2 * pair + 1], own[tile], other[2], other[3]);
            }
        }
    }
};

// sum += a · b, of a as many columns as `b` has rows in shared memory.
template <int TILES, int COLUMNS>
__device__ __forceinline__ void add_product(float (&sum)[TILES][FEATURES / 8][4], const u32 (&a)[TILES][COLUMNS / 2][4], const Half* b) {
    b += (lane() / 8 % 2 * 8 + lane() % 8) * PITCH + lane() / 16 * 8;
#pragma unroll
    for (int step = 0; step < COLUMNS / 2; step++)
#pragma unroll
        for (int pair = 0; pair < FEATURES / 16; pair++) {
            u32 other[4];
            load_transposed(other, b + step * 16 * PITCH + pair * 16);
#pragma unroll
            for (int tile = 0; tile < TILES; tile++) {
                multiply(sum[tile][2 * pair], a[tile][step], other[0], other[1]);
                multiply(sum[tile][2 * pair + 1], a[tile][step], other[2], other[3]);
            }
        }
}

// What a warp has of a product, as the left side of the next.
template <int TILES, int COLUMNS>
__device__ __forceinline__ void round_all(u32 (&to)[TILES][COLUMNS / 2][4], const float (&from)[TILES][COLUMNS][4]) {
#pragma unroll
    for (int tile = 0; tile < TILES; tile++)
#pragma unroll
        for (int column = 0; column < COLUMNS; column++)
#pragma unroll
            for (int half = 0; half < 2; half++)
                to[tile][column / 2][column % 2 * 2 + half] = rounded(from[tile][column][2 * half], from[tile][column][2 * half + 1]);
}

__device__ __forceinline__ void store_two(float* at, float first, float second) {
    *reinterpret_cast<float2*>(at) = make_float2(first, second);
}

__device__ __forceinline__ void store_two(Half* at, float first, float second) {
    *reinterpret_cast<u32*>(at) = rounded(first, second);
}

// Writes the rows of this warp below `limit`, times `factor`, to [rows, pitch].
template <int TILES>
__device__ __forceinline__ void store(Value* to, const float (&from)[TILES][FEATURES / 8][4], long long pitch, int first, int limit,
                                      const float (&factor)[TILES][2]) {
    first += threadIdx.x / 32 * 16 * TILES + lane() / 4;
#pragma unroll
    for (int tile = 0; tile < TILES; tile++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int row = first + tile * 16 + half * 8;
            if (row >= limit) continue;
            Value* at = to + row * pitch + lane() % 4 * 2;
#pragma unroll
            for (int column = 0; column < FEATURES / 8; column++) {
                const float* both = from[tile][column] + 2 * half;
                store_two(at + column * 8, both[0] * factor[tile][half], both[1] * factor[tile][half]);
            }
        }
}

template <int TILES> __device__ __forceinline__ void zero(float (&sum)[TILES][FEATURES / 8][4]) {
#pragma unroll
    for (int tile = 0; tile < TILES; tile++)
#pragma unroll
        for (int column = 0; column < FEATURES / 8; column++)
#pragma unroll
            for (int i = 0; i < 4; i++) sum[tile][column][i] = 0.0f;
}

// The keys that some of a block's queries see, and those that all of them see.
struct Sight {
    int from, to, all_from, all_to;

    __device__ Sight(const Attention& x, int batch, int first, int count) : from(x.keys), to(0), all_from(0), all_to(x.keys) {
        const int spans = (x.queries + SPAN - 1) / SPAN;
        for (int span = first / SPAN; span < (first + count + SPAN - 1) / SPAN; span++) {
            if (span >= spans) {
                all_to = 0;
                break;
            }
            const int* at = x.spans + 4 * (batch * x.apart * spans + span);
            from = min(from, at[0]);
            to = max(to, at[1]);
            all_from = max(all_from, at[2]);
            all_to = min(all_to, at[3]);
        }
    }

    // Whether all queries see all of these keys.
    __device__ __forceinline__ bool whole(int first, int count) const {
        return first >= all_from && first + count <= all_to;
    }
};

// What this thread knows of the queries of its rows.
template <int TILES> struct Own {
    int query[TILES][2], from[TILES][2], to[TILES][2];

    __device__ __forceinline__ Own(const Attention& x, int batch, int first) {
#pragma unroll
        for (int tile = 0; tile < TILES; tile++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const int row = first + threadIdx.x / 32 * 16 * TILES + tile * 16 + half * 8 + lane() / 4;
                const u32* range = x.ranges + 2 * (static_cast<long long>(batch) * x.apart * x.queries + row);
                query[tile][half] = row;
                from[tile][half] = row < x.queries ? range[0] : 0;
                to[tile][half] = row < x.queries ? range[1] : 0;
            }
    }
};

// What dropout multiplies a weight with: `Drop::factor`.
__device__ __forceinline__ float factor(const Attention& x, int batch, int head, int query, int key) {
    u32 index = ((static_cast<u32>(batch) * x.heads + head) * x.queries + query) * x.keys + key;
    index ^= x.first;
    index = ((index ^ (index >> 16)) * 0x21f0aaadu) ^ x.second;
    index = (index ^ (index >> 15)) * 0xd35a2d97u;
    index ^= index >> 15;
    return index >= x.threshold ? x.kept : 0.0f;
}

extern __shared__ __align__(128) Half memory[];

// ---- kernels

// A block for each 16 · TILES · WARPS queries of a head: the result, and ln Σ e^score.
extern "C" __global__ void __launch_bounds__(THREADS) forward(const Attention x) {
    constexpr int TILES = FORWARD_TILES, WIDTH = FORWARD_WIDTH, COLUMNS = WIDTH / 8, ROWS = 16 * TILES * WARPS;
    // Those that see most in causal layers begin.
    const int first = (gridDim.x - 1 - blockIdx.x) * ROWS, head = blockIdx.y, batch = blockIdx.z;
    const int shared = head / (x.heads / x.shared);
    Half* const queries = memory;
    Half* const stages = memory + ROWS * PITCH;
    const Sight sight(x, batch, first, ROWS);
    const int begin = sight.from / WIDTH * WIDTH;

    const auto fetch_keys = [&](int stage, int key) {
        if (key < sight.to) {
            fetch<WIDTH>(stages + 2 * stage * WIDTH * PITCH, x.key, batch, shared, key, x.keys);
            fetch<WIDTH>(stages + (2 * stage + 1) * WIDTH * PITCH, x.value, batch, shared, key, x.keys);
        }
        commit();
    };
    fetch<ROWS>(queries, x.query, batch, head, first, x.queries);
    commit();
    fetch_keys(0, begin);
    wait<1>();
    __syncthreads();
    Rows<TILES> rows(queries);
    const Own<TILES> own(x, batch, first);

    const float scale = x.scale * LOG2_E;
    float most[TILES][2], sum[TILES][2], mixed[TILES][FEATURES / 8][4];
    zero(mixed);
#pragma unroll
    for (int tile = 0; tile < TILES; tile++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            most[tile][half] = LOWEST;
            sum[tile][half] = 0.0f;
        }

    for (int key = begin, stage = 0; key < sight.to; key += WIDTH, stage ^= 1) {
        fetch_keys(stage ^ 1, key + WIDTH);
        wait<1>();
        __syncthreads();
        const Half* const keys = stages + 2 * stage * WIDTH * PITCH;

        float score[TILES][COLUMNS][4];
        rows.by_rows(score, keys);
        const bool whole = sight.whole(key, WIDTH);
#pragma unroll
        for (int tile = 0; tile < TILES; tile++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                float highest = most[tile][half];
#pragma unroll
                for (int column = 0; column < COLUMNS; column++)
#pragma unroll
                    for (int i = 0; i < 2; i++) {
                        float& value = score[tile][column][2 * half + i];
                        const int at = key + column * 8 + lane() % 4 * 2 + i;
                        if (!whole && (at < own.from[tile][half] || at >= own.to[tile][half])) value = LOWEST;
                        highest = fmaxf(highest, value);
                    }
                highest = fmaxf(highest, __shfl_xor_sync(0xffffffffu, highest, 1));
                highest = fmaxf(highest, __shfl_xor_sync(0xffffffffu, highest, 2));
                // Whoever has seen nothing yet.
                const float base = highest == LOWEST ? 0.0f : highest * scale;
                const float shrunk = exp2_of(most[tile][half] * scale - base);
                most[tile][half] = highest;
                float added = 0.0f;
#pragma unroll
                for (int column = 0; column < COLUMNS; column++)
#pragma unroll
                    for (int i = 0; i < 2; i++) {
                        float& value = score[tile][column][2 * half + i];
                        value = exp2_of(value * scale - base);
                        added += value;
#if DROPS
                        value *= factor(x, batch, head, own.query[tile][half], key + column * 8 + lane() % 4 * 2 + i);
#endif
                    }
                sum[tile][half] = sum[tile][half] * shrunk + added;
#pragma unroll
                for (int column = 0; column < FEATURES / 8; column++)
#pragma unroll
                    for (int i = 0; i < 2; i++) mixed[tile][column][2 * half + i] *= shrunk;
            }

        u32 weight[TILES][COLUMNS / 2][4];
        round_all<TILES, COLUMNS>(weight, score);
        add_product<TILES, COLUMNS>(mixed, weight, keys + WIDTH * PITCH);
        __syncthreads();
    }

    float divided[TILES][2];
    float* const lse = x.lse + (static_cast<long long>(batch) * x.heads + head) * x.queries;
#pragma unroll
    for (int tile = 0; tile < TILES; tile++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float all = sum[tile][half];
            all += __shfl_xor_sync(0xffffffffu, all, 1);
            all += __shfl_xor_sync(0xffffffffu, all, 2);
            // NaN divides, too.
            divided[tile][half] = all == 0.0f ? 0.0f : 1.0f / all;
            if (lane() % 4 == 0 && own.query[tile][half] < x.queries)
                lse[own.query[tile][half]] = all == 0.0f ? 0.0f : most[tile][half] * x.scale + logf(all);
        }
    Value* const result = x.result + (static_cast<long long>(batch) * x.queries * x.heads + head) * FEATURES;
    store(result, mixed, static_cast<long long>(x.heads) * FEATURES, first, x.queries, divided);
}

// A block for each 16 · TILES · WARPS queries of a head: their gradients.
extern "C" __global__ void __launch_bounds__(THREADS) of_queries(const Attention x) {
    constexpr int TILES = QUERIES_TILES, WIDTH = QUERIES_WIDTH, COLUMNS = WIDTH / 8, ROWS = 16 * TILES * WARPS;
    const int first = (gridDim.x - 1 - blockIdx.x) * ROWS, head = blockIdx.y, batch = blockIdx.z;
    const int shared = head / (x.heads / x.shared);
    Half* const queries = memory;
    Half* const stages = memory + 2 * ROWS * PITCH;
    const Sight sight(x, batch, first, ROWS);
    const int begin = sight.from / WIDTH * WIDTH;

    const auto fetch_keys = [&](int stage, int key) {
        if (key < sight.to) {
            fetch<WIDTH>(stages + 2 * stage * WIDTH * PITCH, x.key, batch, shared, key, x.keys);
            fetch<WIDTH>(stages + (2 * stage + 1) * WIDTH * PITCH, x.value, batch, shared, key, x.keys);
        }
        commit();
    };
    fetch<ROWS>(queries, x.query, batch, head, first, x.queries);
    fetch<ROWS>(queries + ROWS * PITCH, x.grad, batch, head, first, x.queries);
    commit();
    fetch_keys(0, begin);
    wait<1>();
    __syncthreads();
    Rows<TILES> rows(queries), grads(queries + ROWS * PITCH);
    const Own<TILES> own(x, batch, first);

    const float scale = x.scale * LOG2_E;
    float lse[TILES][2], along[TILES][2], sum[TILES][FEATURES / 8][4];
    zero(sum);
#pragma unroll
    for (int tile = 0; tile < TILES; tile++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const bool there = own.query[tile][half] < x.queries;
            const long long at = (static_cast<long long>(batch) * x.heads + head) * x.queries + own.query[tile][half];
            lse[tile][half] = there ? x.lse[at] * LOG2_E : 0.0f;
            along[tile][half] = there ? x.along[at] : 0.0f;
        }

    for (int key = begin, stage = 0; key < sight.to; key += WIDTH, stage ^= 1) {
        fetch_keys(stage ^ 1, key + WIDTH);
        wait<1>();
        __syncthreads();
        const Half* const keys = stages + 2 * stage * WIDTH * PITCH;

        float score[TILES][COLUMNS][4], slope[TILES][COLUMNS][4];
        rows.by_rows(score, keys);
        grads.by_rows(slope, keys + WIDTH * PITCH);
        const bool whole = sight.whole(key, WIDTH);
#pragma unroll
        for (int tile = 0; tile < TILES; tile++)
#pragma unroll
            for (int column = 0; column < COLUMNS; column++)
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const int half = i / 2, at = key + column * 8 + lane() % 4 * 2 + i % 2;
                    const bool seen = whole || (at >= own.from[tile][half] && at < own.to[tile][half]);
                    const float weight = exp2_of(score[tile][column][i] * scale - lse[tile][half]);
                    float& value = slope[tile][column][i];
#if DROPS
                    value *= factor(x, batch, head, own.query[tile][half], at);
#endif
                    value = seen ? weight * (value - along[tile][half]) * x.scale : 0.0f;
                }

        u32 slopes[TILES][COLUMNS / 2][4];
        round_all<TILES, COLUMNS>(slopes, slope);
        add_product<TILES, COLUMNS>(sum, slopes, keys);
        __syncthreads();
    }

    float once[TILES][2];
#pragma unroll
    for (int tile = 0; tile < TILES; tile++) once[tile][0] = once[tile][1] = 1.0f;
    Value* const of_query = x.of_query + (static_cast<long long>(batch) * x.queries * x.heads + head) * FEATURES;
    store(of_query, sum, static_cast<long long>(x.heads) * FEATURES, first, x.queries, once);
}

// A block for each 16 · TILES · WARPS keys of a shared head: their gradients and those of their values, from all heads that
// share them.
extern "C" __global__ void __launch_bounds__(THREADS) of_keys(const Attention x) {
    constexpr int TILES = KEYS_TILES, WIDTH = KEYS_WIDTH, COLUMNS = WIDTH / 8, ROWS = 16 * TILES * WARPS;
    const int first = blockIdx.x * ROWS, shared = blockIdx.y, batch = blockIdx.z, group = x.heads / x.shared;
    // Two matrices and four numbers for each query.
    constexpr int STAGE = 2 * WIDTH * PITCH + 8 * WIDTH;
    Half* const keys = memory;
    Half* const stages = memory + 2 * ROWS * PITCH;
    const int parts = (x.queries + WIDTH - 1) / WIDTH, all = group * parts;

    // The next queries that see some of these keys: a part of those of a head.
    const auto next = [&](int part) {
        do part++;
        while (part < all && [&] {
            const Sight sight(x, batch, part % parts * WIDTH, WIDTH);
            return sight.from >= first + ROWS || sight.to <= first;
        }());
        return part;
    };
    const auto fetch_queries = [&](int stage, int part) {
        if (part < all) {
            Half* const to = stages + stage * STAGE;
            const int head = shared * group + part / parts, query = part % parts * WIDTH;
            fetch<WIDTH>(to, x.query, batch, head, query, x.queries);
            fetch<WIDTH>(to + WIDTH * PITCH, x.grad, batch, head, query, x.queries);
            float* const numbers = reinterpret_cast<float*>(to + 2 * WIDTH * PITCH);
            const long long row = (static_cast<long long>(batch) * x.heads + head) * x.queries;
            const u32* const ranges = x.ranges + 2 * static_cast<long long>(batch) * x.apart * x.queries;
            for (int i = threadIdx.x; i < WIDTH; i += THREADS) {
                const bool there = query + i < x.queries;
                const int at = there ? query + i : 0;
                copy4(numbers + i, x.lse + row + at, there);
                copy4(numbers + WIDTH + i, x.along + row + at, there);
                copy4(numbers + 2 * WIDTH + i, ranges + 2 * at, there);
                copy4(numbers + 3 * WIDTH + i, ranges + 2 * at + 1, there);
            }
        }
        commit();
    };
    fetch<ROWS>(keys, x.key, batch, shared, first, x.keys);
    fetch<ROWS>(keys + ROWS * PITCH, x.value, batch, shared, first, x.keys);
    commit();
    int part = next(-1);
    fetch_queries(0, part);
    wait<1>();
    __syncthreads();
    Rows<TILES> rows(keys), values(keys + ROWS * PITCH);
    const int row = first + threadIdx.x / 32 * 16 * TILES + lane() / 4;

    const float scale = x.scale * LOG2_E;
    float of_key[TILES][FEATURES / 8][4], of_value[TILES][FEATURES / 8][4];
    zero(of_key);
    zero(of_value);

    for (int stage = 0; part < all; stage ^= 1) {
        const int following = next(part);
        fetch_queries(stage ^ 1, following);
        wait<1>();
        __syncthreads();
        const Half* const queries = stages + stage * STAGE;
        const float* const lse = reinterpret_cast<const float*>(queries + 2 * WIDTH * PITCH);
        const float* const along = lse + WIDTH;
        const int* const from = reinterpret_cast<const int*>(along + WIDTH);
        const int* const to = from + WIDTH;

        // Transposed: a row for each key.
        float weight[TILES][COLUMNS][4], slope[TILES][COLUMNS][4];
        rows.by_rows(weight, queries);
        values.by_rows(slope, queries + WIDTH * PITCH);
        const bool whole = Sight(x, batch, part % parts * WIDTH, WIDTH).whole(first, ROWS);
#pragma unroll
        for (int column = 0; column < COLUMNS; column++)
#pragma unroll
            for (int j = 0; j < 2; j++) {
                const int query = column * 8 + lane() % 4 * 2 + j;
                const float divisor = lse[query] * LOG2_E, carried = along[query];
                const int begin = whole ? 0 : from[query], end = whole ? x.keys : to[query];
#pragma unroll
                for (int tile = 0; tile < TILES; tile++)
#pragma unroll
                    for (int half = 0; half < 2; half++) {
                        const int key = row + tile * 16 + half * 8;
                        const bool seen = key >= begin && key < end;
                        float& own = weight[tile][column][2 * half + j];
                        float& value = slope[tile][column][2 * half + j];
                        own = seen ? exp2_of(own * scale - divisor) : 0.0f;
#if DROPS
                        const float kept = factor(x, batch, shared * group + part / parts, part % parts * WIDTH + query, key);
                        value = seen ? own * (value * kept - carried) * x.scale : 0.0f;
                        own *= kept;
#else
                        value = seen ? own * (value - carried) * x.scale : 0.0f;
#endif
                    }
            }

        u32 weights[TILES][COLUMNS / 2][4], slopes[TILES][COLUMNS / 2][4];
        round_all<TILES, COLUMNS>(weights, weight);
        add_product<TILES, COLUMNS>(of_value, weights, queries + WIDTH * PITCH);
        round_all<TILES, COLUMNS>(slopes, slope);
        add_product<TILES, COLUMNS>(of_key, slopes, queries);
        __syncthreads();
        part = following;
    }

    float once[TILES][2];
#pragma unroll
    for (int tile = 0; tile < TILES; tile++) once[tile][0] = once[tile][1] = 1.0f;
    const long long at = (static_cast<long long>(batch) * x.keys * x.shared + shared) * FEATURES;
    store(x.of_key + at, of_key, static_cast<long long>(x.shared) * FEATURES, first, x.keys, once);
    store(x.of_value + at, of_value, static_cast<long long>(x.shared) * FEATURES, first, x.keys, once);
}
