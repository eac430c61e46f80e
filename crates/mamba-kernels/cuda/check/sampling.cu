// Checks the sampling kernel against the CPU's sampler, repeated here with sorted lists, then times it.
//   nvcc -arch=sm_90 -O3 -std=c++17 check/sampling.cu sampling/*.cu -o sampling_check
//   ./sampling_check            check, then time
//   ./sampling_check small      a few small cases (for compute-sanitizer)
//   ./sampling_check time [json file]
//   ./sampling_check answers > ../../mamba/tests/data/sampling.json
// The last one writes what is expected here, for a test that the CPU's sampler does choose so (no GPU needed).
#include "harness.h"
#include "../sampling/params.h"
#include <map>

using namespace harness;

extern "C" __global__ void sampling_choose_f32(const __grid_constant__ Sampling);

// ------------------------------------------------------------------------------- the CPU's sampler
struct Options {
    float temperature = 0, top_p = 1, min_p = 0, repetition = 1, frequency = 0, presence = 0;
    unsigned top_k = 0;
    std::vector<int> window;
    std::vector<std::pair<int, float>> bias;
    unsigned long long seed = 0, position = 0;
};
struct Choice {
    int token;
    double logprob;
    double margin; // how far the draw lies from the next border between tokens, of the sum
};

float exponential(float x) { // sampler.rs: exp
    const float round = 12582912.f, low = std::max(x, -87.f);
    volatile float shifted = low * 1.44269504f;
    shifted = shifted + round;
    const float n = shifted - round;
    volatile float a = n * 0.6933594f, b = n * 2.1219444e-4f;
    volatile float r = low - a;
    r = r + b;
    volatile float p = 1.9875691e-4f;
    for (float c : {1.3982e-3f, 8.333452e-3f, 4.1665796e-2f, 1.6666665e-1f, 5.0e-1f}) {
        p = p * r;
        p = p + c;
    }
    p = p * r;
    p = p * r;
    p = p + r;
    p = p + 1.f;
    const float s = shifted;
    uint32_t bits;
    std::memcpy(&bits, &s, 4);
    bits = (bits + 127u) << 23;
    float power_of_two;
    std::memcpy(&power_of_two, &bits, 4);
    return x < -87.f ? 0.f : p * power_of_two;
}

double draw(unsigned long long seed, unsigned long long position) { // philox.rs: uniform
    uint32_t c[4] = {(uint32_t)position, (uint32_t)(position >> 32), 0, 0}, k[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
    for (int round = 0; round < 10; round++) {
        if (round > 0) k[0] += 0x9E3779B9u, k[1] += 0xBB67AE85u;
        const uint64_t p0 = (uint64_t)c[0] * 0xD2511F53u, p1 = (uint64_t)c[2] * 0xCD9E8D57u;
        const uint32_t next[4] = {(uint32_t)(p1 >> 32) ^ c[1] ^ k[0], (uint32_t)p1, (uint32_t)(p0 >> 32) ^ c[3] ^ k[1], (uint32_t)p0};
        std::memcpy(c, next, sizeof c);
    }
    return (double)((((uint64_t)c[1] << 32) | c[0]) >> 11) * 0x1p-53;
}

Choice choose(const Options &o, std::vector<float> x) {
    const int vocab = (int)x.size();
    double largest_given = -INFINITY, sum = 0;
    for (float &l : x) {
        l = std::isnan(l) ? -INFINITY : std::min(l, 3.402823466e38f);
        largest_given = std::max(largest_given, (double)l);
    }
    if (largest_given == -INFINITY) return {-1, NAN, 1};
    for (float l : x) sum += std::exp((double)l - largest_given);
    const double log_sum_exp = largest_given + std::log(sum);
    const std::vector<float> given = x;
    auto change = [&](int id, auto by) {
        if (id < 0 || id >= vocab || x[id] == -INFINITY) return;
        x[id] = (float)std::min(std::max(by((double)x[id]), -(double)3.402823466e38f), (double)3.402823466e38f);
    };
    for (auto &b : o.bias) change(b.first, [&](double l) { return l + (double)b.second; });
    if (o.repetition != 1 || o.frequency != 0 || o.presence != 0) {
        std::map<int, int> counts;
        for (int id : o.window) counts[id]++;
        for (auto &c : counts)
            change(c.first, [&](double l) {
                l = l > 0 ? l / (double)o.repetition : l * (double)o.repetition;
                return l - (double)c.second * (double)o.frequency - (double)o.presence;
            });
    }
    int largest = 0;
    for (int i = 0; i < vocab; i++)
        if (x[i] > x[largest]) largest = i;
    int token = largest;
    double margin = 1;
    if (o.temperature != 0) {
        std::vector<float> w(vocab);
        for (int i = 0; i < vocab; i++) w[i] = exponential((x[i] - x[largest]) / o.temperature);
        auto total_order = [](float f) {
            int32_t bits;
            std::memcpy(&bits, &f, 4);
            return bits < 0 ? bits ^ 0x7fffffff : bits;
        };
        std::vector<int> kept(vocab);
        for (int i = 0; i < vocab; i++) kept[i] = i;
        std::stable_sort(kept.begin(), kept.end(), [&](int a, int b) { return total_order(x[a]) > total_order(x[b]); });
        if (o.top_k > 0 && o.top_k < (unsigned)vocab) kept.resize(o.top_k);
        if (o.top_p < 1) {
            double total = 0, before = 0;
            for (int i : kept) total += w[i];
            const double mass = total * (double)o.top_p;
            for (size_t i = 0; i < kept.size(); i++) {
                margin = std::min(margin, std::fabs(before - mass) / total);
                before += w[kept[i]];
                margin = std::min(margin, std::fabs(before - mass) / total);
                if (before >= mass) {
                    kept.resize(i + 1);
                    break;
                }
            }
        }
        kept.erase(std::remove_if(kept.begin(), kept.end(), [&](int i) { return w[i] < o.min_p; }), kept.end());
        std::sort(kept.begin(), kept.end());
        double total = 0, running = 0;
        for (int i : kept) total += w[i];
        const double target = draw(o.seed, o.position) * total;
        for (int i : kept) {
            if (w[i] == 0) continue;
            running += w[i];
            margin = std::min(margin, std::fabs(running - target) / total);
            if (running > target) {
                token = i;
                break;
            }
        }
    }
    return {token, (double)given[token] - log_sum_exp, margin};
}

// ----------------------------------------------------------------------------------------- batches
struct Batch {
    Pool pool;
    Sampling p{};
    int rows;
    float *logits;
    Batch(const std::vector<std::vector<float>> &all, const std::vector<Options> &options, int vocab, int gap) : rows((int)all.size()) {
        p.stride = vocab + gap;
        std::vector<float> flat(rows * p.stride, NAN);
        std::vector<SampleRow> device;
        for (int r = 0; r < rows; r++) {
            std::copy(all[r].begin(), all[r].end(), flat.begin() + r * p.stride);
            const Options &o = options[r];
            std::vector<int> ids;
            std::vector<float> values;
            for (auto &b : o.bias) ids.push_back(b.first), values.push_back(b.second);
            SampleRow row{};
            row.seed = o.seed, row.position = o.position, row.window = pool.of(o.window), row.bias_ids = pool.of(ids), row.bias = pool.of(values);
            row.changed = pool.get<float>(o.window.size() + ids.size());
            row.window_length = (int)o.window.size(), row.bias_count = (int)ids.size();
            row.temperature = o.temperature, row.top_p = o.top_p, row.min_p = o.min_p, row.top_k = o.top_k;
            row.repetition_penalty = o.repetition, row.frequency_penalty = o.frequency, row.presence_penalty = o.presence;
            device.push_back(row);
        }
        p.logits = logits = pool.of(flat), p.rows = pool.of(device), p.vocab = vocab;
        p.counts = pool.of(std::vector<int>((size_t)rows * vocab, 0));
        p.token = pool.get<int>(rows), p.logprob = pool.get<float>(rows);
    }
    void launch(cudaStream_t stream) const {
        sampling_choose_f32<<<rows, kSampleThreads, 0, stream>>>(p);
        CHECK(cudaGetLastError());
    }
};

enum class Kind { normal, steps, flat, sharp, broken, nothing, huge };
std::vector<float> random_logits(Kind kind, int vocab, int seed) {
    std::vector<float> x(vocab);
    for (int i = 0; i < vocab; i++) {
        const float n = normal(i, seed * 16ull, 1, 0), u = uniform(i, seed * 16ull + 7);
        switch (kind) {
        case Kind::normal: x[i] = 3 * n; break;
        case Kind::steps: x[i] = std::round(4 * n) / 2; break; // equal ones everywhere, zeros of both signs
        case Kind::flat: x[i] = 1.5f; break;
        case Kind::sharp: x[i] = 20 * n; break;
        case Kind::broken: x[i] = u < 0.1 ? NAN : u < 0.2 ? -INFINITY : u > 0.9999 ? INFINITY : 2 * n; break;
        case Kind::nothing: x[i] = u < 0.5 ? NAN : -INFINITY; break;
        case Kind::huge: x[i] = 1e38f * n; break;
        }
        if (kind == Kind::steps && x[i] == 0 && u < 0.5) x[i] = -0.f;
    }
    return x;
}

int pick(uint64_t i, uint64_t seed, int n) { return std::min(n - 1, (int)(uniform(i, seed) * n)); }

Options random_options(int vocab, int seed) {
    auto f = [&](int i) { return uniform(i, 1000 + seed); };
    Options o;
    o.temperature = std::vector<float>{0, 1, 0.7f, 1.5f, 0.01f, 30}[pick(0, 1000 + seed, 6)];
    if (f(1) < 0.5) o.top_k = std::vector<unsigned>{1, 2, 5, 40, 63, 64, 65, 1000, 1024, 5000}[pick(2, 1000 + seed, 10)];
    if (f(3) < 0.5) o.top_p = std::vector<float>{0, 0.1f, 0.5f, 0.9f, 0.95f, 0.999f}[pick(4, 1000 + seed, 6)];
    if (f(5) < 0.3) o.min_p = std::vector<float>{0.001f, 0.05f, 0.5f, 1}[pick(6, 1000 + seed, 4)];
    if (f(7) < 0.5) {
        const int length = pick(8, 1000 + seed, 300);
        for (int i = 0; i < length; i++) o.window.push_back(pick(100 + i, 1000 + seed, std::min(vocab + 1, 150))); // repeated; one past the end
        o.repetition = 1 + f(9), o.frequency = f(10) - 0.3f, o.presence = f(11) < 0.5 ? 0 : f(12);
        if (f(13) < 0.3) o.repetition = 1;
    }
    if (f(14) < 0.3)
        for (int i = 0; i < std::min(20, vocab); i++) o.bias.push_back({(i * 7) % vocab, 10 * (f(20 + i) - 0.5f)});
    if (o.bias.size() > 1 && vocab % 7 == 0) o.bias.resize(1); // no id twice
    o.seed = (unsigned long long)seed * 0x9E3779B97F4A7C15ull, o.position = seed % 3 ? seed : 1ull << 40;
    return o;
}

void check(Checks &checks, const std::string &label, Kind kind, int vocab, int gap, int rows, int seed) {
    std::vector<std::vector<float>> logits;
    std::vector<Options> options;
    for (int r = 0; r < rows; r++) logits.push_back(random_logits(kind, vocab, seed + r)), options.push_back(random_options(vocab, seed + r));
    Batch batch(logits, options, vocab, gap);
    checks.begin();
    batch.launch(0);
    const auto tokens = fetch(batch.p.token, rows);
    const auto logprobs = fetch(batch.p.logprob, rows);
    int different = 0;
    double worst = 0;
    for (int r = 0; r < rows; r++) {
        const Choice expected = choose(options[r], logits[r]);
        if (tokens[r] != expected.token) {
            different++;
            std::printf("  row %d: %d instead of %d, margin %.1e; temperature %g top_k %u top_p %g min_p %g\n", r, tokens[r], expected.token, expected.margin,
                        options[r].temperature, options[r].top_k, options[r].top_p, options[r].min_p);
        } else if (expected.token < 0) {
            checks.holds("NaN where nothing can be chosen", std::isnan(logprobs[r]));
        } else {
            const double error = std::fabs(logprobs[r] - expected.logprob) / (1 + std::fabs(expected.logprob));
            worst = std::isnan(error) ? error : std::max(worst, error);
        }
    }
    checks.error("tokens that differ", different, 0);
    checks.error("logprob", worst, 3e-7);
    const auto counts = fetch(batch.p.counts, (size_t)rows * vocab);
    checks.holds("counts zero again", std::all_of(counts.begin(), counts.end(), [](int n) { return n == 0; }));
    const auto after = fetch(batch.logits, rows * batch.p.stride);
    bool gaps = true;
    for (size_t i = 0; i < after.size(); i++) gaps = gaps && (i % batch.p.stride < (size_t)vocab || std::isnan(after[i]));
    checks.holds("gaps untouched", gaps);
    // Alone, each row gives the same bits.
    bool same = true;
    for (int r = 0; r < std::min(rows, 3); r++) {
        Batch alone({logits[r]}, {options[r]}, vocab, 0);
        alone.launch(0);
        same = same && fetch(alone.p.token, 1)[0] == tokens[r] && (tokens[r] < 0 || fetch(alone.p.logprob, 1)[0] == logprobs[r]);
    }
    checks.holds("the same alone", same);
    checks.end(label);
}

void check_small(Checks &checks) {
    check(checks, "1000, normal", Kind::normal, 1000, 0, 8, 1);
    check(checks, "1001, steps, odd", Kind::steps, 1001, 2, 8, 50);
    check(checks, "6000, broken", Kind::broken, 6000, 0, 6, 90);
}
void check_all(Checks &checks) {
    const std::pair<Kind, const char *> kinds[] = {{Kind::normal, "normal"}, {Kind::steps, "steps"}, {Kind::flat, "flat"}, {Kind::sharp, "sharp"},
                                                   {Kind::broken, "broken"}, {Kind::nothing, "nothing"}, {Kind::huge, "huge"}};
    int seed = 200;
    for (auto &kind : kinds) {
        for (int vocab : {1, 2, 3, 130, 4096, 8192}) check(checks, std::to_string(vocab) + ", " + kind.second, kind.first, vocab, 4 - vocab % 4, 50, seed += 1000);
        check(checks, std::string("50280, ") + kind.second, kind.first, 50280, 0, 40, seed += 1000);
        check(checks, std::string("50277, odd, ") + kind.second, kind.first, 50277, 2, 20, seed += 1000);
    }
    check(checks, "300000, normal", Kind::normal, 300000, 0, 10, 70000);
}

void answers() {
    std::printf("[\n");
    bool first = true;
    for (int kind = 0; kind < 7; kind++)
        for (int n = 0; n < 12; n++) {
            const int vocab = std::vector<int>{1, 3, 130, 2000}[n % 4], seed = 500 + 100 * kind + n;
            const Options o = random_options(vocab, seed);
            const Choice c = choose(o, random_logits((Kind)kind, vocab, seed));
            if (c.margin < 1e-8) continue;
            std::printf("%s{\"kind\":%d,\"vocab\":%d,\"seed\":%d,\"temperature\":%.9g,\"top_k\":%u,\"top_p\":%.9g,\"min_p\":%.9g,", first ? "" : ",\n", kind,
                        vocab, seed, o.temperature, o.top_k, o.top_p, o.min_p);
            std::printf("\"repetition\":%.9g,\"frequency\":%.9g,\"presence\":%.9g,\"key\":%llu,\"position\":%llu,\"window\":[", o.repetition, o.frequency,
                        o.presence, o.seed, o.position);
            for (size_t i = 0; i < o.window.size(); i++) std::printf(i ? ",%d" : "%d", o.window[i]);
            std::printf("],\"bias\":[");
            for (size_t i = 0; i < o.bias.size(); i++) std::printf(i ? ",[%d,%.9g]" : "[%d,%.9g]", o.bias[i].first, o.bias[i].second);
            std::printf(c.token < 0 ? "],\"token\":null}" : "],\"token\":%d,\"logprob\":%.9g}", c.token, c.logprob);
            first = false;
        }
    std::printf("\n]\n");
}

void time_all(const char *path) {
    Timer timer;
    Report report(timer);
    const int vocab = 50280;
    for (int rows : {64, 1, 128}) {
        auto time = [&](const std::string &what, Options o) {
            std::vector<std::vector<float>> logits;
            std::vector<Options> options;
            for (int r = 0; r < rows; r++) {
                logits.push_back(random_logits(Kind::normal, vocab, 7000 + r));
                o.position = r;
                options.push_back(o);
            }
            Batch batch(logits, options, vocab, 0);
            report.row("sampling " + std::to_string(rows) + " x 50280, " + what, timer([&](cudaStream_t s) { batch.launch(s); }), 4. * rows * vocab);
        };
        Options o;
        time("greedy", o);
        o.temperature = 1;
        time("temperature", o);
        Options k = o, p = o, m = o, both = o, all;
        k.top_k = 40;
        time("top_k 40", k);
        p.top_p = 0.95f;
        time("top_p 0.95", p);
        m.min_p = 0.05f;
        time("min_p 0.05", m);
        both.top_k = 40, both.top_p = 0.95f;
        time("top_k 40, top_p 0.95", both);
        all = both;
        all.presence = 1e-4f;
        for (int i = 0; i < 256; i++) all.window.push_back(pick(i, 5, vocab));
        time("top_k 40, top_p 0.95, penalties of 256", all);
    }
    report.write(path);
}

int main(int argc, char **argv) {
    const std::string mode = argc > 1 ? argv[1] : "all";
    if (mode == "answers") {
        answers();
        return 0;
    }
    Checks checks;
    if (mode != "time") {
        check_small(checks);
        if (mode != "small") check_all(checks);
        if (checks.finish()) return 1;
    }
    if (mode == "all" || mode == "time") time_all(argc > 2 ? argv[2] : nullptr);
    return 0;
}
