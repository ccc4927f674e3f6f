// Convolutions of visible patches that read each neighbour where it lies: depthwise ones without gathered windows, others by
// pairs of visible positions.
//
// Rows are positions of patches, their channels contiguous; patch n has the rows n * P to (n + 1) * P - 1. What is computed is
// one block of positions after the other, most often one for each patch. Which patches lie around block b is
// `around[b * cells + c]`: the number of a patch; `patches` where it is masked, more where it is outside the image. A plan that is
// the same for every block tells in which of them, and where in it, each position of a block looks (plans.py).
//
// Channels are worked on in blocks that fit the registers, sums are float32 (float64 for float64), and their order does not
// depend on the number of threads.

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>
#include <vector>

namespace {

using Parallel = void (*)(void (*)(void *), void *, unsigned, unsigned);  // OpenMP's, of the library that PyTorch runs on

struct Call {
    const int32_t *around;  // (blocks, cells)
    const int32_t *plan;    // (positions, taps, 2): cell, position within it; cell < 0: the tap sees nothing there
    int64_t blocks, patches, cells;
    int64_t positions;  // of a block of what is computed
    int64_t others;     // of a patch of what is read
    int64_t taps, channels, threads;
    Parallel parallel;  // or none
};

// ---------------------------------------------------------------- registers

// Packs wider than a register are taken apart by compilers in ways that are many times slower.
#if defined(__AVX512F__)
constexpr int register_bytes = 64, registers = 32;
#elif defined(__AVX__)
constexpr int register_bytes = 32, registers = 16;
#elif defined(__aarch64__)
constexpr int register_bytes = 16, registers = 32;
#else
constexpr int register_bytes = 16, registers = 16;
#endif

// Packs of columns worked on at a time, and rows beside so many of them: their sums stay in registers.
constexpr int most_packs = registers / 8;
constexpr int rows_beside(int packs) { return packs < most_packs ? 8 : 6; }

inline int64_t ceiling(int64_t number, int64_t of) { return (number + of - 1) / of; }

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

template <typename Call, typename Task>
void in_parallel(const Call &call, int64_t count, const Task &task) {
    Tasks<Task> tasks{task, count};
    if (call.parallel && call.threads > 1 && count > 1)
        call.parallel(Tasks<Task>::work, &tasks, unsigned(std::min(call.threads, count)), 0);
    else
        Tasks<Task>::work(&tasks);
}

// Calls block.run<lanes, packs>(first channel) until all channels are done: the widest blocks first.
template <int widest, typename Block>
void by_blocks(int64_t first, int64_t end, const Block &block) {
    if constexpr (most_packs >= 4) {
        for (; first + 4 * widest <= end; first += 4 * widest) block.template run<widest, 4>(first);
        for (; first + 3 * widest <= end; first += 3 * widest) block.template run<widest, 3>(first);
    }
    for (; first + 2 * widest <= end; first += 2 * widest) block.template run<widest, 2>(first);
    for (; first + widest <= end; first += widest) block.template run<widest, 1>(first);
    if constexpr (widest >= 4)
        for (; first + widest / 2 <= end; first += widest / 2) block.template run<widest / 2, 1>(first);
    if constexpr (widest >= 8)
        for (; first + widest / 4 <= end; first += widest / 4) block.template run<widest / 4, 1>(first);
    for (; first < end; ++first) block.template run<1, 1>(first);
}

// ---------------------------------------------------------------- what is worked on at a time

// Blocks, so many that what they have of some channels stays in the cache.
int64_t blocks_together(const Call &call) { return std::max<int64_t>(1, 64 / std::max<int64_t>(1, call.positions)); }

// Calls task(first, end) for all blocks.
template <typename Task>
void some_blocks_at_a_time(const Call &call, const Task &task) {
    const int64_t together = blocks_together(call);
    in_parallel(call, ceiling(call.blocks, together),
                [&](int64_t i) { task(i * together, std::min(call.blocks, (i + 1) * together)); });
}

// (positions of the blocks `first` to `end`, taps): the row that each tap sees, < 0: none.
std::vector<int32_t> rows_seen(const Call &call, int64_t first, int64_t end) {
    std::vector<int32_t> rows((end - first) * call.positions * call.taps);
    std::vector<int64_t> corner(call.cells);  // first row of each patch around, < 0: not there
    int32_t *row = rows.data();
    for (int64_t block = first; block < end; ++block) {
        for (int64_t cell = 0; cell < call.cells; ++cell) {
            const int64_t other = call.around[block * call.cells + cell];
            corner[cell] = other < call.patches ? other * call.others : -1;
        }
        const int32_t *seen = call.plan;
        for (int64_t i = 0; i < call.positions * call.taps; ++i, seen += 2)
            *row++ = seen[0] < 0 || corner[seen[0]] < 0 ? -1 : int32_t(corner[seen[0]] + seen[1]);
    }
    return rows;
}

// ---------------------------------------------------------------- result, and gradient of the input

template <typename Number, typename Sum>
struct Gather {
    const Call &call;
    const int32_t *seen;  // (positions, taps)
    int64_t positions;
    const Number *from;  // (rows, channels)
    const Sum *weight;   // (taps, channels)
    const Sum *bias;     // (channels,) or none
    Number *to;          // (positions, channels)

    template <int lanes, int packs>
    void run(int64_t c) const {
        typedef Pack<Sum, lanes> Sums;
        const int32_t *row = seen;
        for (int64_t position = 0; position < positions; ++position) {
            Sums sums[packs];
            for (int i = 0; i < packs; ++i) sums[i] = bias ? load<lanes>(bias + c + i * lanes) : Sums{};
            for (int64_t tap = 0; tap < call.taps; ++tap, ++row) {
                if (*row < 0) continue;
                const Number *values = from + *row * call.channels + c;
                const Sum *factors = weight + tap * call.channels + c;
                for (int i = 0; i < packs; ++i) sums[i] += load<lanes>(values + i * lanes) * load<lanes>(factors + i * lanes);
            }
            for (int i = 0; i < packs; ++i) store<lanes>(to + position * call.channels + c + i * lanes, sums[i]);
        }
    }
};

template <typename Number, typename Sum, int widest>
void gather(const Call &call, const Number *from, const Sum *weight, const Sum *bias, Number *to) {
    some_blocks_at_a_time(call, [&](int64_t first, int64_t end) {
        const std::vector<int32_t> seen = rows_seen(call, first, end);
        by_blocks<widest>(0, call.channels,
                          Gather<Number, Sum>{call, seen.data(), (end - first) * call.positions, from, weight, bias,
                                              to + first * call.positions * call.channels});
    });
}

// ---------------------------------------------------------------- gradient of the weight

// Several taps share the gradients that were loaded.
template <typename Number, typename Sum>
struct Products {
    const Call &call;
    const int32_t *seen;  // (positions, taps)
    int64_t positions;
    const Number *grad;  // (positions, channels)
    const Number *from;  // (rows, channels)
    Sum *sums;           // (taps, channels), added to

    template <int lanes, int packs>
    void run(int64_t c) const {
        int64_t tap = 0;
        for (; tap + 3 <= call.taps; tap += 3) at<lanes, packs, 3>(c, tap);
        for (; tap < call.taps; ++tap) at<lanes, packs, 1>(c, tap);
    }

    template <int lanes, int packs, int several>
    void at(int64_t c, int64_t tap) const {
        typedef Pack<Sum, lanes> Sums;
        Sums found[several][packs] = {};
        const int32_t *row = seen + tap;
        for (int64_t position = 0; position < positions; ++position, row += call.taps) {
            Sums grads[packs];
            for (int i = 0; i < packs; ++i) grads[i] = load<lanes>(grad + position * call.channels + c + i * lanes);
            for (int t = 0; t < several; ++t) {
                if (row[t] < 0) continue;
                const Number *values = from + row[t] * call.channels + c;
                for (int i = 0; i < packs; ++i) found[t][i] += grads[i] * load<lanes>(values + i * lanes);
            }
        }
        for (int t = 0; t < several; ++t)
            for (int i = 0; i < packs; ++i) {
                Sum *sum = sums + (tap + t) * call.channels + c + i * lanes;
                store<lanes>(sum, load<lanes>(sum) + found[t][i]);
            }
    }
};

template <typename Number, typename Sum, int widest>
void products(const Call &call, const Number *grad, const Number *from, Sum *sums) {
    const int64_t together = blocks_together(call), block = most_packs * widest, size = call.taps * call.channels;
    const int64_t blocks = ceiling(call.channels, block);
    // Enough parts for any number of threads, each with sums of its own, added up in order at the end.
    const int64_t parts = std::max<int64_t>(1, std::min(call.blocks, 64 / blocks));
    std::vector<Sum> partial(parts * size);
    in_parallel(call, parts * blocks, [&](int64_t task) {
        const int64_t part = task / blocks, c = task % blocks * block, stop = (part + 1) * call.blocks / parts;
        for (int64_t first = part * call.blocks / parts; first < stop; first += together) {
            const int64_t end = std::min(stop, first + together);
            const std::vector<int32_t> seen = rows_seen(call, first, end);
            by_blocks<widest>(c, std::min(call.channels, c + block),
                              Products<Number, Sum>{call, seen.data(), (end - first) * call.positions,
                                                    grad + first * call.positions * call.channels, from,
                                                    &partial[part * size]});
        }
    });
    std::copy(partial.begin(), partial.begin() + size, sums);
    for (int64_t part = 1; part < parts; ++part)
        for (int64_t i = 0; i < size; ++i) sums[i] += partial[part * size + i];
}

// ---------------------------------------------------------------- pairs

// Of each tap, the rows that it sees, and the rows that see them. `ends` (taps + 1,): where each tap's pairs begin, and the last
// one's end. Looks at the patch `skipped` of those around, if any, are left out.
void pair(const Call &call, int64_t skipped, int32_t *sources, int32_t *results, int64_t *ends) {
    const auto each = [&](int64_t tap, const auto &found) {
        std::vector<int64_t> looking;
        for (int64_t position = 0; position < call.positions; ++position) {
            const int32_t cell = call.plan[2 * (position * call.taps + tap)];
            if (cell >= 0 && cell != skipped) looking.push_back(position);
        }
        for (int64_t block = 0; block < call.blocks; ++block)
            for (const int64_t position : looking) {
                const int32_t *seen = call.plan + 2 * (position * call.taps + tap);
                const int64_t patch = call.around[block * call.cells + seen[0]];
                if (patch < call.patches) found(patch * call.others + seen[1], block * call.positions + position);
            }
    };
    in_parallel(call, call.taps, [&](int64_t tap) {
        int64_t count = 0;
        each(tap, [&](int64_t, int64_t) { ++count; });
        ends[tap + 1] = count;
    });
    ends[0] = 0;
    for (int64_t tap = 0; tap < call.taps; ++tap) ends[tap + 1] += ends[tap];
    in_parallel(call, call.taps, [&](int64_t tap) {
        int64_t at = ends[tap];
        each(tap, [&](int64_t source, int64_t result) {
            sources[at] = int32_t(source);
            results[at++] = int32_t(result);
        });
    });
}

// Rows of groups of channels, and of pairs of them, tap by tap. No tap has two pairs of the same row.
struct Pairs {
    const int32_t *from, *to;  // of each pair: the row that is read, and the one that is added to, or comes with it
    const int64_t *ends;       // (taps + 1,)
    int64_t taps, groups;
    int64_t width, others;         // channels of a group, of those rows and of these
    int64_t count, count_of_others;  // of rows
    int64_t threads;
    Parallel parallel;

    bool read_often() const { return ends[taps] > 2 * count; }

    // Of one group: so many that registers are full, fewer where there would be fewer tasks than threads.
    template <int widest>
    int64_t columns_of_a_task() const {
        const int64_t packs = ceiling(others, widest), tasks = std::max(ceiling(packs, most_packs), ceiling(threads, groups));
        return ceiling(packs, std::min(packs, tasks)) * widest;
    }

    // Calls run(channels of a group) if those are 4, 8 or 16 and groups fill packs of so many lanes; tells whether it did.
    template <int lanes, int size = 4, typename Run>
    bool in_narrow_groups(const Run &run) const {
        if constexpr (size <= std::min(lanes, 16)) {
            if (width != size || others != size || groups * size % lanes) return in_narrow_groups<lanes, 2 * size>(run);
            run(std::integral_constant<int, size>());
            return true;
        }
        return false;
    }
};

// Each lane's group has `size` lanes: all of a group get its k-th.
template <typename Number, int lanes, int size, int... lane>
inline Pack<Number, lanes> spread(const Pack<Number, lanes> &pack, int k, std::integer_sequence<int, lane...>) {
    typedef Pack<std::conditional_t<sizeof(Number) == 4, int32_t, int64_t>, lanes> Places;
    const Places places = Places{lane / size * size...} + k;
#ifdef __clang__
    Pack<Number, lanes> found;
    for (int i = 0; i < lanes; ++i) found[i] = pack[places[i]];
    return found;
#else
    return __builtin_shuffle(pack, places);
#endif
}
template <int size, int lanes, typename Number>
inline Pack<Number, lanes> spread(const Pack<Number, lanes> &pack, int k) {
    return spread<Number, lanes, size>(pack, k, std::make_integer_sequence<int, lanes>());
}

// Groups of `size` channels, several in a pack: each pair's row times the groups' matrices of one tap, added to the other row.
// weight: (groups, outputs, taps, inputs)
template <typename Number, int lanes, int size>
void multiply_narrow(const Pairs &pairs, bool back, const Number *rows, const Number *weight, Number *sums) {
    typedef Pack<Number, lanes> Numbers;
    constexpr int together = registers / 4;
    const int64_t channels = pairs.groups * size, packs = channels / lanes;
    const int64_t block = std::min<int64_t>(4, ceiling(packs, pairs.threads));
    in_parallel(pairs, ceiling(packs, block), [&](int64_t task) {
        const int64_t first = task * block * lanes, count = std::min(block, packs - task * block);
        std::vector<Numbers> matrix(size * count);  // the k-th factor of each column
        for (int64_t tap = 0; tap < pairs.taps; ++tap) {
            if (pairs.ends[tap] == pairs.ends[tap + 1]) continue;
            for (int64_t c = 0; c < count * lanes; ++c)
                for (int64_t k = 0; k < size; ++k) {
                    const int64_t group = (first + c) / size, own = (first + c) % size, output = back ? k : own;
                    const int64_t input = back ? own : k;
                    matrix[c / lanes * size + k][c % lanes] = weight[((group * size + output) * pairs.taps + tap) * size + input];
                }
            for (int64_t pair = pairs.ends[tap]; pair < pairs.ends[tap + 1]; pair += together) {
                const int64_t left = pairs.ends[tap + 1] - pair;
                for (int64_t p = 0; p < count; ++p) {
                    const int64_t column = first + p * lanes;
                    Numbers values[together], found[together] = {};
                    for (int i = 0; i < together; ++i)
                        values[i] = load<lanes>(rows + pairs.from[pair + (i < left ? i : 0)] * channels + column);
                    for (int k = 0; k < size; ++k)
                        for (int i = 0; i < together; ++i)
                            found[i] += matrix[p * size + k] * spread<size, lanes, Number>(values[i], k);
                    for (int i = 0; i < together && i < left; ++i) {
                        Number *sum = sums + pairs.to[pair + i] * channels + column;
                        store<lanes>(sum, load<lanes>(sum) + found[i]);
                    }
                }
            }
        }
    });
}

// Likewise the sums over pairs of each channel of the one row times each of its group of the other.
// sums: (groups, size, taps, size)
template <typename Number, int lanes, int size>
void correlate_narrow(const Pairs &pairs, const Number *rows, const Number *others, Number *sums) {
    typedef Pack<Number, lanes> Numbers;
    const int64_t channels = pairs.groups * size, packs = channels / lanes;
    in_parallel(pairs, packs * pairs.taps, [&](int64_t task) {
        const int64_t tap = task % pairs.taps, column = task / pairs.taps * lanes;
        Numbers found[size] = {};
        for (int64_t pair = pairs.ends[tap]; pair < pairs.ends[tap + 1]; ++pair) {
            const Numbers values = load<lanes>(rows + pairs.from[pair] * channels + column);
            const Numbers other = load<lanes>(others + pairs.to[pair] * channels + column);
            for (int k = 0; k < size; ++k) found[k] += other * spread<size, lanes, Number>(values, k);
        }
        for (int k = 0; k < size; ++k)
            for (int lane = 0; lane < lanes; ++lane) {
                const int64_t group = (column + lane) / size;
                sums[((group * size + k) * pairs.taps + tap) * size + lane % size] = found[k][lane];
            }
    });
}

// Some columns of rows, in place; or copied one row behind the other, where they are a small part of rows that are read `often`,
// and would waste most of each cache line.
template <typename Number>
class Columns {
  public:
    Columns(Number *rows, int64_t count, int64_t stride, int64_t first, int64_t width, bool often)
        : origin(rows + first), count(count), apart(stride), width(width), stride(stride), data(origin) {
        if (!often || width * int64_t(sizeof(Number)) > 128 || width == stride) return;
        copied.resize(count * width);
        this->stride = width;
        data = copied.data();
        for (int64_t i = 0; i < count; ++i) std::copy_n(origin + i * apart, width, &copied[i * width]);
    }
    Number *row(int64_t i) const { return data + i * stride; }
    void write_back() const {
        for (int64_t i = 0; i < count && data != origin; ++i) std::copy_n(&copied[i * width], width, origin + i * apart);
    }

  private:
    Number *origin;
    int64_t count, apart, width, stride;
    Number *data;
    std::vector<Number> copied;
};

// One tap of one group: each pair's row times some columns of a matrix, added to the other row. Several pairs share what was
// loaded of the matrix.
template <typename Number>
struct Multiplied {
    const Pairs &pairs;
    int64_t tap;
    const Columns<Number> &rows, &sums;
    const std::vector<Number> &matrix;  // (width, columns)
    int64_t columns;

    template <int lanes, int packs>
    void run(int64_t c) const {
        typedef Pack<Number, lanes> Numbers;
        constexpr int together = rows_beside(packs);
        for (int64_t pair = pairs.ends[tap]; pair < pairs.ends[tap + 1]; pair += together) {
            const int64_t left = pairs.ends[tap + 1] - pair;
            const Number *values[together];
            for (int i = 0; i < together; ++i) values[i] = rows.row(pairs.from[pair + (i < left ? i : 0)]);
            Numbers found[together][packs] = {};
            for (int64_t k = 0; k < pairs.width; ++k)
                for (int p = 0; p < packs; ++p) {
                    const Numbers factor = load<lanes>(&matrix[k * columns + c + p * lanes]);
                    for (int i = 0; i < together; ++i) found[i][p] += factor * values[i][k];
                }
            for (int i = 0; i < together && i < left; ++i)
                for (int p = 0; p < packs; ++p) {
                    Number *sum = sums.row(pairs.to[pair + i]) + c + p * lanes;
                    store<lanes>(sum, load<lanes>(sum) + found[i][p]);
                }
        }
    }
};

// weight: (groups, outputs, taps, inputs), its inputs the columns if `back`, else its outputs.
template <typename Number, int widest>
void multiply(const Pairs &pairs, bool back, Number *rows, const Number *weight, Number *sums) {
    if (pairs.in_narrow_groups<widest>([&](auto size) { multiply_narrow<Number, widest, size>(pairs, back, rows, weight, sums); })) return;
    const bool often = pairs.read_often();
    const int64_t block = pairs.columns_of_a_task<widest>(), blocks = ceiling(pairs.others, block);
    const int64_t inputs = back ? pairs.others : pairs.width;
    in_parallel(pairs, pairs.groups * blocks, [&](int64_t task) {
        const int64_t group = task / blocks, first = task % blocks * block, columns = std::min(block, pairs.others - first);
        const int64_t width = pairs.width, next = pairs.taps * inputs;  // from one of the weight's outputs to the next
        const Columns<Number> from(rows, pairs.count, pairs.groups * width, group * width, width, often);
        const Columns<Number> to(sums, pairs.count_of_others, pairs.groups * pairs.others, group * pairs.others + first, columns,
                                 often);
        std::vector<Number> matrix(width * columns);
        for (int64_t tap = 0; tap < pairs.taps; ++tap) {
            if (pairs.ends[tap] == pairs.ends[tap + 1]) continue;
            const Number *factors = weight + group * width * pairs.others * pairs.taps + tap * inputs + first * (back ? 1 : next);
            if (back)
                for (int64_t k = 0; k < width; ++k) std::copy_n(factors + k * next, columns, &matrix[k * columns]);
            else
                for (int64_t some = 0; some < width; some += 64)  // so many that what is written stays in the cache
                    for (int64_t c = 0; c < columns; ++c)
                        for (int64_t k = some; k < std::min(width, some + 64); ++k) matrix[k * columns + c] = factors[c * next + k];
            by_blocks<widest>(0, columns, Multiplied<Number>{pairs, tap, from, to, matrix, columns});
        }
        to.write_back();
    });
}

// One tap of one group: the sums over its pairs of each channel of the one row times each of the other. A function of its own,
// for which the compiler finds registers enough.
template <typename Number>
struct Correlated {
    const Pairs &pairs;
    int64_t tap;
    const Columns<Number> &rows, &others;
    Number *sums;  // (width, taps, others), of the group, from its first column on

    template <int lanes, int packs>
    [[gnu::noinline]] void run(int64_t c) const {
        typedef Pack<Number, lanes> Numbers;
        constexpr int together = rows_beside(packs);
        for (int64_t first = 0; first < pairs.width; first += together) {
            const int64_t left = pairs.width - first;
            Numbers found[together][packs] = {};
            for (int64_t pair = pairs.ends[tap]; pair < pairs.ends[tap + 1]; ++pair) {
                const Number *values = rows.row(pairs.from[pair]) + first, *other = others.row(pairs.to[pair]) + c;
                for (int p = 0; p < packs; ++p) {
                    const Numbers factor = load<lanes>(other + p * lanes);
                    for (int i = 0; i < together; ++i) found[i][p] += factor * values[i < left ? i : 0];
                }
            }
            for (int i = 0; i < together && i < left; ++i)
                for (int p = 0; p < packs; ++p)
                    store<lanes>(sums + ((first + i) * pairs.taps + tap) * pairs.others + c + p * lanes, found[i][p]);
        }
    }
};

template <typename Number, int widest>
void correlate(const Pairs &pairs, Number *rows, Number *others, Number *sums) {
    if (pairs.in_narrow_groups<widest>([&](auto size) { correlate_narrow<Number, widest, size>(pairs, rows, others, sums); })) return;
    const bool often = pairs.read_often();
    const int64_t block = most_packs * widest, blocks = ceiling(pairs.others, block);
    // Taps of a group share what is copied, where there are groups enough for all threads.
    const int64_t parts = pairs.groups > 1 && pairs.groups * blocks >= pairs.threads ? 1 : pairs.taps;
    in_parallel(pairs, pairs.groups * blocks * parts, [&](int64_t task) {
        const int64_t part = task % parts, group = task / parts / blocks, first = task / parts % blocks * block;
        const int64_t width = pairs.width, columns = std::min(block, pairs.others - first);
        const Columns<Number> one(rows, pairs.count, pairs.groups * width, group * width, width, often);
        const Columns<Number> other(others, pairs.count_of_others, pairs.groups * pairs.others, group * pairs.others + first,
                                    columns, often);
        for (int64_t tap = part; tap < pairs.taps; tap += parts) {
            Number *found = sums + group * width * pairs.taps * pairs.others + first;
            by_blocks<widest>(0, columns, Correlated<Number>{pairs, tap, one, other, found});
        }
    });
}

}  // namespace

template <typename Sum>
constexpr int lanes_of = register_bytes / int(sizeof(Sum));

#define ENTRIES(NAME, NUMBER, SUM)                                                                                        \
    extern "C" void gather_##NAME(const Call *call, const NUMBER *from, const SUM *weight, const SUM *bias, NUMBER *to) { \
        gather<NUMBER, SUM, lanes_of<SUM>>(*call, from, weight, bias, to);                                                \
    }                                                                                                                     \
    extern "C" void products_##NAME(const Call *call, const NUMBER *grad, const NUMBER *from, SUM *sums) {                \
        products<NUMBER, SUM, lanes_of<SUM>>(*call, grad, from, sums);                                                    \
    }

ENTRIES(float32, float, float)
ENTRIES(bfloat16, Brain, float)
ENTRIES(float64, double, double)

#define PAIRED_ENTRIES(NAME, NUMBER)                                                                                      \
    extern "C" void multiply_##NAME(const Pairs *pairs, int64_t back, NUMBER *rows, const NUMBER *weight,                 \
                                    NUMBER *sums) {                                                                       \
        multiply<NUMBER, lanes_of<NUMBER>>(*pairs, back, rows, weight, sums);                                             \
    }                                                                                                                     \
    extern "C" void correlate_##NAME(const Pairs *pairs, NUMBER *rows, NUMBER *others, NUMBER *sums) {                    \
        correlate<NUMBER, lanes_of<NUMBER>>(*pairs, rows, others, sums);                                                  \
    }

PAIRED_ENTRIES(float32, float)
PAIRED_ENTRIES(float64, double)

extern "C" void make_pairs(const Call *call, int64_t skipped, int32_t *sources, int32_t *results, int64_t *ends) {
    pair(*call, skipped, sources, results, ends);
}
