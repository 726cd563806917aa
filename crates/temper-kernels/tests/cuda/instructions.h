// `instructions.cuh` on a processor. Every lane of a warp must take part in what the warp does together; copies to shared memory
// arrive as late as they may, or at once. F16 as of `attention.cu`.

#pragma once

#include "language.h"

typedef uint16_t Half;

#define LOWEST (-INFINITY)

struct Copy {
    void* to;
    const void* from;
    int bytes;
    bool there;
};

// Copies of each thread on their way, by commit, the last not committed yet.
static std::vector<std::vector<std::vector<Copy>>> copies(1024);
static bool early = false;

// To be called before each block, and after the last.
inline void expect_no_copies() {
    for (auto& own : copies) {
        if (own.size() > 2) fail("more copies under way than the kernel waits for");
        own.assign(1, {});
    }
}

inline float value(Half half) {
    return F16 ? of_f16(half) : of_bf16(half);
}

inline Half rounded_one(float x) {
    return F16 ? rounded_f16(x) : rounded_bf16(x);
}

inline u32 rounded(float low, float high) {
    return rounded_one(low) | static_cast<u32>(rounded_one(high)) << 16;
}

inline float exp2_of(float x) {
    return std::exp2(x);
}

inline void aligned(const void* at, size_t bytes) {
    if (reinterpret_cast<uintptr_t>(at) % bytes) fail("an address that is not aligned");
}

// As `together`, of a whole warp.
template <class T, class Read> static void all_together(int deed, const T& own, Read read) {
    together(deed, own, [&](auto of) {
        if (fibers[current].present != 0xffffffffu) fail("a part of a warp");
        read(of);
        return 0;
    });
}

inline u32 pair(const Half* low, const Half* high) {
    return *low | static_cast<u32>(*high) << 16;
}

inline void load(u32 (&to)[4], const Half* row) {
    aligned(row, 16);
    all_together(10, row, [&](auto of) {
        const int lane = lane_number();
        for (int i = 0; i < 4; i++) {
            const Half* const from = of(8 * i + lane / 4) + lane % 4 * 2;
            to[i] = pair(from, from + 1);
        }
    });
}

inline void load_transposed(u32 (&to)[4], const Half* row) {
    aligned(row, 16);
    all_together(11, row, [&](auto of) {
        const int lane = lane_number(), first = lane % 4 * 2;
        for (int i = 0; i < 4; i++) to[i] = pair(of(8 * i + first) + lane / 4, of(8 * i + first + 1) + lane / 4);
    });
}

// Fragments as the PTX manual draws them for mma.m16n8k16.
inline void multiply(float (&sum)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    struct Operands {
        float a[8], b[4];
    } own;
    for (int i = 0; i < 4; i++) own.a[2 * i] = value(a[i] & 0xffff), own.a[2 * i + 1] = value(a[i] >> 16);
    own.b[0] = value(b0 & 0xffff), own.b[1] = value(b0 >> 16), own.b[2] = value(b1 & 0xffff), own.b[3] = value(b1 >> 16);
    all_together(12, own, [&](auto of) {
        const int lane = lane_number();
        for (int i = 0; i < 4; i++) {
            const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
            for (int k = 0; k < 16; k++) {
                const float left = of(row % 8 * 4 + k % 8 / 2).a[(k / 8 * 2 + row / 8) * 2 + k % 2];
                sum[i] += left * of(column * 4 + k % 8 / 2).b[k / 8 * 2 + k % 2];
            }
        }
    });
}

inline void arrive(const Copy& copy) {
    if (copy.there)
        memcpy(copy.to, copy.from, copy.bytes);
    else
        memset(copy.to, 0, copy.bytes);
}

inline void copy(const Copy& copy) {
    aligned(copy.to, copy.bytes);
    aligned(copy.from, copy.bytes);
    if (early)
        arrive(copy);
    else
        copies[current].back().push_back(copy);
}

inline void copy16(void* to, const void* from, bool there) {
    copy({to, from, 16, there});
}

inline void copy4(void* to, const void* from, bool there) {
    copy({to, from, 4, there});
}

inline void commit() {
    copies[current].emplace_back();
}

template <int OPEN> void wait() {
    auto& own = copies[current];
    while (own.size() > OPEN + 1) {
        std::for_each(own.front().begin(), own.front().end(), arrive);
        own.erase(own.begin());
    }
}
