// The bias of a matrix product: written into all rows before cuBLAS adds the product.
#include "params.h"
#include <cuda_bf16.h>
#include <cuda_fp16.h>

template <class T> __device__ __forceinline__ void bias_rows(const BiasRows &p) {
    const int col = blockIdx.x * 256 + threadIdx.x;
    if (col >= p.cols) return;
    const T bias = static_cast<T>(p.bias[col]);
    for (int row = blockIdx.y; row < p.rows; row += gridDim.y)
        static_cast<T *>(p.out)[row * p.out_stride + col] = bias;
}

#define BIAS_ROWS(T, name)                                                                                     \
    extern "C" __global__ void __launch_bounds__(256) bias_rows_##name(const __grid_constant__ BiasRows p) {   \
        bias_rows<T>(p);                                                                                       \
    }
BIAS_ROWS(__nv_bfloat16, bf16)
BIAS_ROWS(__half, f16)
BIAS_ROWS(float, f32)
