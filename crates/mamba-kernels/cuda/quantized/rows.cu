// Rows of a quantized weight, widened: of an embedding's table by ids, and of a matrix that cuBLAS multiplies with.
#include "common.cuh"

namespace quantized {

// A thread has 8 neighbouring inputs.
template <class F, class Out> __device__ __forceinline__ void rows(const QuantizedRows &p) {
    const int piece = blockIdx.x * kQuantizedRowThreads + threadIdx.x, left = p.inputs - 8 * piece;
    if (left <= 0) return;
    const int group = piece / 4, chunk = group / F::kGroups, h = group % F::kGroups;
    const bool aligned = vec::aligned<8>(static_cast<Out *>(p.out), p.out_stride);
    for (int i = blockIdx.y; i < p.count; i += gridDim.y) {
        const char *const row = static_cast<const char *>(p.weight) + (long long)(p.ids ? p.ids[i] : p.first + i) * p.row_bytes;
        const uint4 pairs = F::weights_at(row + chunk * 64 + piece % 4 * 16 + h * (16 / F::kGroups));
        const typename F::Scale scale = F::scale(row + p.weight_bytes, p.weight_bytes, chunk, h);
        const uint32_t words[4] = {pairs.x, pairs.y, pairs.z, pairs.w};
        float values[8];
#pragma unroll
        for (int k = 0; k < 8; k += 2) {
            const float2 q = __half22float2(*reinterpret_cast<const __half2 *>(&words[k / 2]));
            values[k] = F::value(scale, q.x), values[k + 1] = F::value(scale, q.y);
        }
        Out *const to = static_cast<Out *>(p.out) + i * p.out_stride + 8 * piece;
        aligned && left >= 8 ? vec::store<true>(to, values, 8) : vec::store<false>(to, values, left);
    }
}

} // namespace quantized

#define QUANTIZED_ROWS(F, format, Out, out)                                                                    \
    extern "C" __global__ void __launch_bounds__(kQuantizedRowThreads) quantized_rows_##format##_##out(const __grid_constant__ QuantizedRows p) { \
        quantized::rows<quantized::F, Out>(p);                                                                 \
    }
QUANTIZED_KERNELS(QUANTIZED_ROWS)
