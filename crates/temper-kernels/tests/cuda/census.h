// What a program asks of a GPU, in place of what it computes (EMULATED_COUNT): some blocks of each kernel run, compiled with
// `-fsanitize=thread`, whose hooks say which memory each thread reads and writes.

#pragma once

#include <array>
#include <fstream>
#include <map>
#include <mutex>
#include <string>
#include <unordered_set>

#include "language.h"

class Census {
    struct Count {
        double times, read, written, operations;
    };

    static constexpr uintptr_t SECTOR = 32;

    const char* const file = getenv("EMULATED_COUNT");
    std::mutex one;
    std::map<std::string, Count> counts;
    // What a block has touched, read and written, and how much all have.
    std::array<std::unordered_set<uintptr_t>, 2> touched;
    std::array<double, 2> bytes;
    double blocks;
    size_t most = 0;

    static void touch(const void* at, size_t count, bool writes) {
        const uintptr_t begin = reinterpret_cast<uintptr_t>(at);
        for (uintptr_t sector = begin / SECTOR; sector <= (begin + count - 1) / SECTOR; sector++) here().touched[writes].insert(sector);
    }

    static void end_block() {
        for (int writes = 0; writes < 2; writes++) {
            here().bytes[writes] += here().touched[writes].size() * SECTOR;
            here().touched[writes].clear();
        }
        here().blocks++;
    }

public:
    static Census& here() {
        static Census all;
        return all;
    }

    operator bool() const { return file; }

    // So much memory is allocated now.
    void hold(size_t memory) {
        const std::lock_guard<std::mutex> lock(one);
        most = max(most, memory);
    }

    // One more of what `find` counts the first time.
    template <class Find> void add(const std::string& what, Find find) {
        const std::lock_guard<std::mutex> lock(one);
        const auto [found, first] = counts.try_emplace(what);
        if (first) found->second = find();
        found->second.times++;
    }

    // One more of what always asks for this much.
    void add_known(const std::string& what, double read, double written, double operations = 0) {
        add(what, [&] { return Count{0, read, written, operations}; });
    }

    // One more launch of a kernel. What it asks for is known from some of its blocks, which `run` runs.
    template <class Run> void add_kernel(const std::string& what, double all, const char* begin, const char* end, Run run) {
        add(what, [&] {
            bytes = {}, blocks = 0;
            run(Watch{begin, end, touch, end_block});
            return Count{0, bytes[0] * all / blocks, bytes[1] * all / blocks, 0};
        });
    }

    ~Census() {
        if (!file) return;
        const std::lock_guard<std::mutex> lock(one);
        std::ofstream to(file);
        to << most << "\n";
        for (const auto& [what, count] : counts)
            to << what << "\t" << count.times << "\t" << count.read << "\t" << count.written << "\t" << count.operations << "\n";
    }
};
