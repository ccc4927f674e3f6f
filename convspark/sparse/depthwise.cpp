// Depthwise convolutions of visible patches that read each neighbour where it lies: no window is gathered.
//
// Rows are positions of patches, their channels contiguous; patch n has the rows n * P to (n + 1) * P - 1. Which patches
// lie around patch n is `around[n * cells + c]`: a row of patches, or any number from `patches` on where there is none.
// The kernel's taps, as `weight[tap * channels + c]`, and a plan that is the same for every patch come from `depthwise.py`.
//
// Channels are worked on in blocks that fit the registers, sums are float32 (float64 for float64), and their order does not
// depend on the number of threads.

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

using Parallel = void (*)(void (*)(void *), void *, unsigned, unsigned);  // OpenMP's, of the library that PyTorch runs on

struct Call {
    const int32_t *around;  // (patches, cells)
    const int32_t *plan;    // (positions, taps, 2): cell, position within it; cell < 0: the tap sees nothing there
    int64_t patches, cells, positions, others, taps, columns, channels, threads;
    Parallel parallel;
};
// `positions` are those of a patch in what is computed, `others` those in what is read; `columns` is the kernel's width.

// ---------------------------------------------------------------- numbers

struct Brain {
    uint16_t bits;
};

template <typename Number, int lanes>
struct Packed {
    typedef Number type __attribute__((vector_size(sizeof(Number) * lanes)));
};
template <typename Number, int lanes>
using Pack = typename Packed<Number, lanes>::type;
template <int lanes>
using Words = Pack<uint32_t, lanes>;
template <int lanes>
using Halves = Pack<uint16_t, lanes>;

template <typename To, typename From>
inline To as(const From &from) {  // the same bits
    static_assert(sizeof(To) == sizeof(From), "");
    To to;
    std::memcpy(&to, &from, sizeof(to));
    return to;
}

template <int lanes>
inline Pack<float, lanes> load(const float *from) {
    Pack<float, lanes> pack;
    std::memcpy(&pack, from, sizeof(pack));
    return pack;
}
template <int lanes>
inline Pack<double, lanes> load(const double *from) {
    Pack<double, lanes> pack;
    std::memcpy(&pack, from, sizeof(pack));
    return pack;
}
template <int lanes>
inline Pack<float, lanes> load(const Brain *from) {
    Halves<lanes> upper;
    std::memcpy(&upper, from, sizeof(upper));
    const Words<lanes> bits = __builtin_convertvector(upper, Words<lanes>);
    return as<Pack<float, lanes>>(bits << 16);
}

template <int lanes>
inline void store(float *to, const Pack<float, lanes> &pack) {
    std::memcpy(to, &pack, sizeof(pack));
}
template <int lanes>
inline void store(double *to, const Pack<double, lanes> &pack) {
    std::memcpy(to, &pack, sizeof(pack));
}
template <int lanes>
inline void store(Brain *to, const Pack<float, lanes> &pack) {  // to the nearest, ties to even
    typedef Words<lanes> Bits;
    const Bits bits = as<Bits>(pack), nan = as<Bits>(pack != pack);
    const Bits rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    const Halves<lanes> upper = __builtin_convertvector((rounded & ~nan) | (nan & 0x7fc0), Halves<lanes>);
    std::memcpy(to, &upper, sizeof(upper));
}

template <typename Number>
struct SumOf {
    typedef Number type;
};
template <>
struct SumOf<Brain> {
    typedef float type;
};

// ---------------------------------------------------------------- threads

template <typename Task>
struct Tasks {
    const Task &task;
    const int64_t count;
    std::atomic<int64_t> next{0};

    static void work(void *self) {
        auto &tasks = *static_cast<Tasks *>(self);
        for (int64_t i; (i = tasks.next.fetch_add(1)) < tasks.count;) tasks.task(i);
    }
};

template <typename Task>
void in_parallel(const Call &call, int64_t count, const Task &task) {
    Tasks<Task> tasks{task, count};
    if (call.parallel && call.threads > 1 && count > 1)
        call.parallel(Tasks<Task>::work, &tasks, unsigned(std::min(call.threads, count)), 0);
    else
        Tasks<Task>::work(&tasks);
}

// Calls block<lanes, packs>(first channel) until all channels are done: the widest blocks first.
template <int widest, typename Block>
void by_blocks(int64_t first, int64_t end, Block &&block) {
    for (; first + 4 * widest <= end; first += 4 * widest) block.template run<widest, 4>(first);
    for (; first + 2 * widest <= end; first += 2 * widest) block.template run<widest, 2>(first);
    for (; first + widest <= end; first += widest) block.template run<widest, 1>(first);
    for (; first + widest / 2 <= end; first += widest / 2) block.template run<widest / 2, 1>(first);
    for (; first < end; ++first) block.template run<1, 1>(first);
}

// ---------------------------------------------------------------- result and gradient of the input

template <typename Number>
struct Gather {
    typedef typename SumOf<Number>::type Sum;
    const Call &call;
    const Number *from;   // (patches * others, channels)
    const Sum *weight;    // (taps, channels)
    const Sum *bias;      // (channels,) or none
    Number *to;           // (patches * positions, channels)
    int64_t patch;
    const int64_t *base;  // (cells,) first row of each patch around this one, < 0: none

    template <int lanes, int packs>
    void run(int64_t c) {
        typedef Pack<Sum, lanes> Sums;
        const int64_t width = call.channels;
        const int32_t *seen = call.plan;
        for (int64_t position = 0; position < call.positions; ++position) {
            Sums sums[packs];
            for (int i = 0; i < packs; ++i) sums[i] = bias ? load<lanes>(bias + c + i * lanes) : Sums{};
            for (int64_t tap = 0; tap < call.taps; ++tap, seen += 2) {
                if (seen[0] < 0 || base[seen[0]] < 0) continue;
                const Number *values = from + (base[seen[0]] + seen[1]) * width + c;
                const Sum *factors = weight + tap * width + c;
                for (int i = 0; i < packs; ++i) sums[i] += load<lanes>(values + i * lanes) * load<lanes>(factors + i * lanes);
            }
            Number *result = to + (patch * call.positions + position) * width + c;
            for (int i = 0; i < packs; ++i) store<lanes>(result + i * lanes, sums[i]);
        }
    }
};

void bases(const Call &call, int64_t patch, int64_t positions, int64_t *base) {
    for (int64_t cell = 0; cell < call.cells; ++cell) {
        const int64_t other = call.around[patch * call.cells + cell];
        base[cell] = other < call.patches ? other * positions : -1;
    }
}

template <typename Number, int widest>
void gather(const Call &call, const Number *from, const typename SumOf<Number>::type *weight,
            const typename SumOf<Number>::type *bias, Number *to) {
    const int64_t together = std::max<int64_t>(1, 64 / call.positions);  // patches whose turn it is with a block of weights
    const int64_t count = (call.patches + together - 1) / together;
    in_parallel(call, count, [&](int64_t task) {
        const int64_t first = task * together, end = std::min(call.patches, first + together);
        std::vector<int64_t> base(together * call.cells);
        for (int64_t patch = first; patch < end; ++patch) bases(call, patch, call.others, &base[(patch - first) * call.cells]);
        const int64_t block = 4 * widest;
        for (int64_t c = 0; c < call.channels; c += block)
            for (int64_t patch = first; patch < end; ++patch)
                by_blocks<widest>(c, std::min(call.channels, c + block),
                                  Gather<Number>{call, from, weight, bias, to, patch, &base[(patch - first) * call.cells]});
    });
}

// ---------------------------------------------------------------- gradient of the weight

template <typename Number>
struct Products {
    typedef typename SumOf<Number>::type Sum;
    const Call &call;
    const Number *grad;   // (patches * positions, channels)
    const Number *from;   // (patches * others, channels)
    Sum *sums;            // (taps, channels), added to
    int64_t first, end;   // patches
    const int64_t *bases; // (end - first, cells)

    template <int lanes, int packs>
    void run(int64_t c) {
        for (int64_t tap = 0; tap < call.taps;) {
            const int64_t left = call.columns - tap % call.columns;  // of the kernel's row
            if (left >= 3 && left != 4) { columns<lanes, packs, 3>(c, tap); tap += 3; }
            else if (left >= 2) { columns<lanes, packs, 2>(c, tap); tap += 2; }
            else { columns<lanes, packs, 1>(c, tap); tap += 1; }
        }
    }

    template <int lanes, int packs, int several>
    void columns(int64_t c, int64_t tap) {
        typedef Pack<Sum, lanes> Sums;
        const int64_t width = call.channels;
        Sums found[several][packs] = {};
        for (int64_t patch = first; patch < end; ++patch) {
            const int64_t *base = bases + (patch - first) * call.cells;
            const Number *row = grad + patch * call.positions * width + c;
            const int32_t *seen = call.plan + 2 * tap;
            for (int64_t position = 0; position < call.positions; ++position, row += width, seen += 2 * call.taps) {
                Sums grads[packs];
                for (int i = 0; i < packs; ++i) grads[i] = load<lanes>(row + i * lanes);
                for (int t = 0; t < several; ++t) {
                    if (seen[2 * t] < 0 || base[seen[2 * t]] < 0) continue;
                    const Number *values = from + (base[seen[2 * t]] + seen[2 * t + 1]) * width + c;
                    for (int i = 0; i < packs; ++i) found[t][i] += grads[i] * load<lanes>(values + i * lanes);
                }
            }
        }
        for (int t = 0; t < several; ++t)
            for (int i = 0; i < packs; ++i) {
                Sum *sum = sums + (tap + t) * width + c + i * lanes;
                store<lanes>(sum, load<lanes>(sum) + found[t][i]);
            }
    }
};

template <typename Number, int widest>
void products(const Call &call, const Number *grad, const Number *from, typename SumOf<Number>::type *sums) {
    typedef typename SumOf<Number>::type Sum;
    const int64_t block = 4 * widest, blocks = (call.channels + block - 1) / block;
    // Enough parts for any number of threads, each with sums of its own, added up in order at the end.
    const int64_t parts = std::max<int64_t>(1, std::min(call.patches, 64 / blocks));
    const int64_t size = call.taps * call.channels;
    std::vector<Sum> partial(parts * size);
    in_parallel(call, parts * blocks, [&](int64_t task) {
        const int64_t part = task / blocks, c = task % blocks * block;
        const int64_t from_patch = part * call.patches / parts, to_patch = (part + 1) * call.patches / parts;
        const int64_t together = std::max<int64_t>(1, 64 / call.positions);
        std::vector<int64_t> base(together * call.cells);
        for (int64_t first = from_patch; first < to_patch; first += together) {
            const int64_t end = std::min(to_patch, first + together);
            for (int64_t patch = first; patch < end; ++patch) bases(call, patch, call.others, &base[(patch - first) * call.cells]);
            by_blocks<widest>(c, std::min(call.channels, c + block),
                              Products<Number>{call, grad, from, &partial[part * size], first, end, base.data()});
        }
    });
    for (int64_t i = 0; i < size; ++i) {
        Sum sum = 0;
        for (int64_t part = 0; part < parts; ++part) sum += partial[part * size + i];
        sums[i] = sum;
    }
}

}  // namespace

#define ENTRIES(NAME, NUMBER, SUM, LANES)                                                                             \
    extern "C" void gather_##NAME(const Call *call, const NUMBER *from, const SUM *weight, const SUM *bias, NUMBER *to) { \
        gather<NUMBER, LANES>(*call, from, weight, bias, to);                                                             \
    }                                                                                                                     \
    extern "C" void products_##NAME(const Call *call, const NUMBER *grad, const NUMBER *from, SUM *sums) {                \
        products<NUMBER, LANES>(*call, grad, from, sums);                                                                 \
    }

ENTRIES(float32, float, float, 16)
ENTRIES(bfloat16, Brain, float, 16)
ENTRIES(float64, double, double, 8)
