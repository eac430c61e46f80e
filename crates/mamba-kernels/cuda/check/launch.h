// Host side of the selective scan: which kernels, which grid, which segments. What Rust's launcher repeats.
#pragma once
#include "../selective_scan/params.h"
#include "cuda_check.h"
#include <algorithm>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <vector>

#define SCAN_DECLARE(name)                                                                                     \
    extern "C" __global__ void selective_scan_forward_tile_##name(const __grid_constant__ ScanForward);        \
    extern "C" __global__ void selective_scan_forward_local_##name(const __grid_constant__ ScanForward);       \
    extern "C" __global__ void selective_scan_forward_narrow_##name(const __grid_constant__ ScanForward);      \
    extern "C" __global__ void selective_scan_forward_narrow_local_##name(const __grid_constant__ ScanForward); \
    extern "C" __global__ void selective_scan_backward_##name(const __grid_constant__ ScanBackward);           \
    extern "C" __global__ void selective_scan_backward_local_##name(const __grid_constant__ ScanBackward);     \
    SCAN_DECLARE_GENERIC(name, 1) SCAN_DECLARE_GENERIC(name, 2) SCAN_DECLARE_GENERIC(name, 4) SCAN_DECLARE_GENERIC(name, 8)
#define SCAN_DECLARE_GENERIC(name, K)                                                                          \
    extern "C" __global__ void selective_scan_generic_forward_##name##_##K(const __grid_constant__ ScanForward); \
    extern "C" __global__ void selective_scan_generic_backward_##name##_##K(const __grid_constant__ ScanBackward);
SCAN_DECLARE(bf16)
SCAN_DECLARE(f16)
SCAN_DECLARE(f32)
extern "C" __global__ void selective_scan_forward_carry(const __grid_constant__ ScanForward);
extern "C" __global__ void selective_scan_backward_carry(const __grid_constant__ ScanBackward);
extern "C" __global__ void selective_scan_reduce(const __grid_constant__ ScanBackward);

using ForwardKernel = void (*)(ScanForward);
using BackwardKernel = void (*)(ScanBackward);
template <class T> struct ScanKernels;
#define SCAN_TABLE(T, name)                                                                                    \
    template <> struct ScanKernels<T> {                                                                        \
        static constexpr ForwardKernel tile = selective_scan_forward_tile_##name,                              \
                                       local = selective_scan_forward_local_##name,                            \
                                       narrow = selective_scan_forward_narrow_##name,                          \
                                       narrow_local = selective_scan_forward_narrow_local_##name;              \
        static constexpr BackwardKernel backward = selective_scan_backward_##name,                             \
                                        backward_local = selective_scan_backward_local_##name;                 \
        static constexpr ForwardKernel generic_forward[4] = {                                                  \
            selective_scan_generic_forward_##name##_1, selective_scan_generic_forward_##name##_2,              \
            selective_scan_generic_forward_##name##_4, selective_scan_generic_forward_##name##_8};             \
        static constexpr BackwardKernel generic_backward[4] = {                                                \
            selective_scan_generic_backward_##name##_1, selective_scan_generic_backward_##name##_2,            \
            selective_scan_generic_backward_##name##_4, selective_scan_generic_backward_##name##_8};           \
    };
SCAN_TABLE(__nv_bfloat16, bf16)
SCAN_TABLE(__half, f16)
SCAN_TABLE(float, f32)

enum class ScanPath { tile, narrow, generic };

// How one call runs. A sequence is cut into `pieces` equal segments (the longest one; others likewise), or, where
// `shrinking`, into segments of ceil(rest / pieces) each: long ones first and 64 tokens last, so that all
// multiprocessors end together. With pieces = blocks that the device runs at once / blocks of channels.
struct ScanPlan {
    ScanPath path;
    int pieces;
    bool shrinking = false;
};

inline int ceil_div(int a, int b) { return (a + b - 1) / b; }

// Segments of all sequences, each but a sequence's last a multiple of 64 tokens; chunk rows in order. slots and fresh:
// one a sequence, see ScanSegment.
inline std::vector<ScanSegment> cut(const std::vector<int> &cu_seqlens, const std::vector<int> &slots, const std::vector<int> &fresh, ScanPlan plan) {
    int longest = 1;
    for (size_t s = 0; s + 1 < cu_seqlens.size(); s++) longest = std::max(longest, cu_seqlens[s + 1] - cu_seqlens[s]);
    const int equal = ceil_div(ceil_div(longest, 64), std::max(1, plan.pieces)) * 64;
    std::vector<ScanSegment> out;
    int chunk = 0;
    for (int s = 0; s + 1 < (int)cu_seqlens.size(); s++) {
        int begin = cu_seqlens[s], end = cu_seqlens[s + 1], at = begin;
        do {
            int length = plan.shrinking ? ceil_div(ceil_div(end - at, 64), plan.pieces) * 64 : equal;
            int stop = std::min(end, at + length);
            out.push_back({at, stop, s, slots[s], chunk, at == begin, stop == end, fresh[s]});
            chunk += ceil_div(stop - at, 64);
            at = stop;
        } while (at < end);
    }
    return out;
}
// Where each sequence's segments begin, and their number last.
inline std::vector<int> first_segments(const std::vector<ScanSegment> &segments) {
    std::vector<int> first;
    for (size_t i = 0; i < segments.size(); i++)
        if (segments[i].first) first.push_back((int)i);
    first.push_back((int)segments.size());
    return first;
}
// Few segments a sequence: chained by the blocks themselves, which spares a launch.
inline bool carry_inside(const std::vector<int> &first_segment) {
    for (size_t i = 0; i + 1 < first_segment.size(); i++)
        if (first_segment[i + 1] - first_segment[i] > 16) return false;
    return true;
}
inline bool is_split(const std::vector<ScanSegment> &segments) {
    return std::any_of(segments.begin(), segments.end(), [](const ScanSegment &s) { return !s.first; });
}

inline int generic_index(int states) { return states <= 32 ? 0 : states <= 64 ? 1 : states <= 128 ? 2 : 3; }
inline int generic_channels(int states) { // channels a warp
    int width = 1;
    while (width < states && width < 32) width *= 2;
    return 32 / width;
}

// A kernel that begins before the one in front of it has ended (common/early.cuh). Only right behind a
// kernel of the same operation. Launched plainly it gives the same result, some microseconds later.
template <class P> void launch_behind(void (*kernel)(P), dim3 grid, int threads, int bytes, cudaStream_t stream, const P &p) {
    cudaLaunchAttribute attribute{};
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config{};
    config.gridDim = grid, config.blockDim = threads, config.dynamicSmemBytes = bytes, config.stream = stream;
    config.attrs = &attribute, config.numAttrs = 1;
    CHECK(cudaLaunchKernelEx(&config, kernel, p));
}

// p.segments and the workspace are set; segment_state is null unless some sequence is split.
template <class T> void launch_forward(const ScanForward &p, ScanPath path, int sequences, cudaStream_t stream) {
    const int E = p.channels, shared = scan_forward_tile_shared(sizeof(T));
    if (path == ScanPath::generic) {
        ScanKernels<T>::generic_forward[generic_index(p.states)]<<<dim3(ceil_div(E, generic_channels(p.states)), p.segment_count), 32, 0, stream>>>(p);
    } else {
        const bool narrow = path == ScanPath::narrow;
        const dim3 grid(ceil_div(E, narrow ? 8 : 64), p.segment_count);
        const int threads = 128, bytes = narrow ? 0 : shared;
        if (p.segment_state) {
            (narrow ? ScanKernels<T>::narrow_local : ScanKernels<T>::local)<<<grid, threads, bytes, stream>>>(p);
            if (!p.carry_inside) selective_scan_forward_carry<<<dim3(ceil_div(E, 32), 16, sequences), 32, 0, stream>>>(p);
        }
        const ForwardKernel main = narrow ? ScanKernels<T>::narrow : ScanKernels<T>::tile;
        if (p.segment_state && p.carry_inside) launch_behind(main, grid, threads, bytes, stream, p);
        else main<<<grid, threads, bytes, stream>>>(p);
    }
    CHECK(cudaGetLastError());
}
template <class T> void launch_backward(const ScanBackward &p, ScanPath path, int sequences, cudaStream_t stream) {
    const int E = p.channels;
    if (path == ScanPath::generic) {
        int k = generic_index(p.states);
        ScanKernels<T>::generic_backward[k]<<<dim3(p.partials, p.segment_count), 32, scan_generic_backward_shared(1 << k), stream>>>(p);
    } else {
        dim3 grid(ceil_div(E, 64), p.segment_count);
        if (p.segment_state) {
            ScanKernels<T>::backward_local<<<grid, 128, 0, stream>>>(p);
            if (!p.carry_inside) selective_scan_backward_carry<<<dim3(ceil_div(E, 32), 16, sequences), 32, 0, stream>>>(p);
        }
        if (p.segment_state && p.carry_inside) launch_behind(ScanKernels<T>::backward, grid, 128, kScanBackwardShared, stream, p);
        else ScanKernels<T>::backward<<<grid, 128, kScanBackwardShared, stream>>>(p);
    }
    launch_behind(selective_scan_reduce, dim3((unsigned)((p.tokens * 2 * p.states + 127) / 128 + (p.states + 2) * ceil_div(E, 128))), 128, 0, stream, p);
    CHECK(cudaGetLastError());
}
template <class T> void allow_shared_memory() {
    auto allow = [](const void *kernel, int bytes) { CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes)); };
    allow((const void *)ScanKernels<T>::tile, scan_forward_tile_shared(sizeof(T)));
    allow((const void *)ScanKernels<T>::local, scan_forward_tile_shared(sizeof(T)));
    allow((const void *)ScanKernels<T>::backward, kScanBackwardShared);
    for (int k = 0; k < 4; k++) allow((const void *)ScanKernels<T>::generic_backward[k], scan_generic_backward_shared(1 << k));
}
