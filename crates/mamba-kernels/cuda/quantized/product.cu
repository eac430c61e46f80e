// Products of a few rows with quantized weights, which are read once and widened in registers. A block has 16 outputs; its
// warps take turns in the chunks of a row, as in block_step/product.cuh, whose ring and sums these are.
//
// A group's weights are whole numbers, exact in f16, as are their products with activations in f32: so the scale is
// applied to a group's sum, and nothing is rounded but the sums.
#include "common.cuh"

namespace quantized {
using namespace step;

constexpr uint32_t kOnes = 0x3c003c00; // two f16 of 1

// Adds a chunk of 16 outputs (rows g and g + 8 of `low` and `high`) and 8 * kTiles tokens. kGroups of inputs each.
template <int kTiles>
__device__ __forceinline__ void add(float (&total)[kTiles][4], Q8_0, uint4 low, uint4 high, const uint4 (&x)[kTiles][2], const char *low_scales, const char *high_scales, int weight_bytes, int chunk) {
#pragma unroll
    for (int h = 0; h < Q8_0::kGroups; h++) {
        const uint4 a = Q8_0::weights(low, h), b = Q8_0::weights(high, h);
        const float s = Q8_0::scale(low_scales, weight_bytes, chunk, h).scale, t = Q8_0::scale(high_scales, weight_bytes, chunk, h).scale;
#pragma unroll
        for (int j = 0; j < kTiles; j++) {
            Sum sum;
            multiply<__half>(sum, a, b, x[j][h]);
#pragma unroll
            for (int i = 0; i < 4; i++) total[j][i] = fmaf(i < 2 ? s : t, sum[i], total[j][i]);
        }
    }
}
template <int kTiles>
__device__ __forceinline__ void add(float (&total)[kTiles][4], Q4K, uint4 low, uint4 high, const uint4 (&x)[kTiles][4], const char *low_scales, const char *high_scales, int weight_bytes, int chunk) {
    const uint4 ones = make_uint4(kOnes, kOnes, kOnes, kOnes);
#pragma unroll
    for (int h = 0; h < Q4K::kGroups; h++) {
        const uint4 a = Q4K::weights(low, h), b = Q4K::weights(high, h);
        const Q4K::Scale s = Q4K::scale(low_scales, weight_bytes, chunk, h), t = Q4K::scale(high_scales, weight_bytes, chunk, h);
#pragma unroll
        for (int j = 0; j < kTiles; j++) {
            Sum sum, inputs; // of the activations alone, for the mins: the same in all rows
            multiply<__half>(sum, a, b, x[j][h]);
            multiply<__half>(inputs, ones, ones, x[j][h]);
#pragma unroll
            for (int i = 0; i < 4; i++) total[j][i] += fmaf(i < 2 ? s.scale : t.scale, sum[i], -(i < 2 ? s.min : t.min) * inputs[i]);
        }
    }
}

template <class F, class Out, int kTiles> __device__ __forceinline__ void product(const QuantizedProduct &p) {
    extern __shared__ __align__(128) char shared[];
    __shared__ Sums<kTiles> sums;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, q = lane % 4;
    const int first_output = blockIdx.x * 16, first_row = blockIdx.y * 8 * kTiles, rows = min(8 * kTiles, p.rows - first_row);
    const char *const weight = static_cast<const char *>(p.weight);
    // The ring takes a row's bytes as pairs of them.
    Weights<__half, kQuantizedDepth> weights{static_cast<const __half *>(p.weight), p.outputs, p.row_bytes / 2, 0, p.weight_bytes / 2, (p.outputs + 15) / 16, 1 << 20, (int)blockIdx.x, 0, shared};
    char *const scales = shared + p.ring_bytes;
    const int pieces = (p.row_bytes - p.weight_bytes) / 16;
    for (int i = threadIdx.x; i < 16 * pieces; i += kThreads) { // with the first chunk
        const int output = min(first_output + i / pieces, p.outputs - 1);
        copy_16(scales + i / pieces * p.scale_stride + i % pieces * 16, weight + (long long)output * p.row_bytes + p.weight_bytes + i % pieces * 16, true);
    }
    weights.fill();

    const __half *const x = static_cast<const __half *>(p.x) + first_row * p.x_stride;
    const bool aligned = vec::aligned<8>(x, p.x_stride);
    auto fetch = [&](uint4 (&to)[kTiles][F::kGroups], int chunk) {
#pragma unroll
        for (int j = 0; j < kTiles; j++)
#pragma unroll
            for (int h = 0; h < F::kGroups; h++) {
                const int k = (chunk * F::kGroups + h) * 32 + q * 8, left = j * 8 + g < rows ? p.inputs - k : 0;
                const __half *const from = x + (j * 8 + g) * p.x_stride + k;
                vec::Vector<__half, 8> values{};
                if (left >= 8 && aligned) values = vec::load_vector<8>(from);
                else if (left > 0) values = vec::load<false, 8>(from, left);
                to[j][h] = make_uint4(values.word[0], values.word[1], values.word[2], values.word[3]);
            }
    };
    uint4 now[kTiles][F::kGroups], next[kTiles][F::kGroups];
    fetch(now, warp);
    weights.wait();
    __syncthreads();
    float total[kTiles][4] = {};
    const int chunks = weights.chunks();
    for (int i = 0; i < chunks; i++) {
        const int chunk = i * kWarps + warp;
        fetch(next, chunk + kWarps);
        weights.wait();
        if (chunk * 64 < p.weight_bytes)
            add<kTiles>(total, F{}, weights.low(), weights.high(), now, scales + g * p.scale_stride, scales + (g + 8) * p.scale_stride, p.weight_bytes, chunk);
        weights.next();
#pragma unroll
        for (int j = 0; j < kTiles; j++)
#pragma unroll
            for (int h = 0; h < F::kGroups; h++) now[j][h] = next[j][h];
    }
    Sum acc[kTiles];
#pragma unroll
    for (int j = 0; j < kTiles; j++)
#pragma unroll
        for (int i = 0; i < 4; i++) acc[j].a[i] = total[j][i];
    const float sum = add_warps<kTiles>(sums, 0, acc);
    const int output = first_output + threadIdx.x % 16, row = threadIdx.x / 16;
    if (row >= rows || output >= p.outputs) return;
    static_cast<Out *>(p.out)[(first_row + row) * p.out_stride + output] = from_float<Out>(p.bias ? sum + p.bias[output] : sum);
}

} // namespace quantized

#define QUANTIZED_PRODUCT_(F, format, Out, out, tiles)                                                         \
    extern "C" __global__ void __launch_bounds__(256, 2) quantized_product_##format##_##out##_##tiles(const __grid_constant__ QuantizedProduct p) { \
        quantized::product<quantized::F, Out, tiles>(p);                                                       \
    }
#define QUANTIZED_PRODUCT(F, format, Out, out)                                                                 \
    QUANTIZED_PRODUCT_(F, format, Out, out, 1)                                                                 \
    QUANTIZED_PRODUCT_(F, format, Out, out, 2)
QUANTIZED_KERNELS(QUANTIZED_PRODUCT)
