// Kernels that begin before the one in front has ended.
#pragma once

namespace early {

// A kernel launched with programmatic stream serialization (check/launch.h; Grid::behind in Rust) starts as soon as all
// blocks of the kernel in front have called let_next_start or ended. It may read what that one writes, or write anything,
// only after wait_for_previous. Launched plainly both do nothing. Every block of such a kernel has to wait: only then has, once it
// has ended, all that lies before the kernel in front ended, too.
__device__ __forceinline__ void let_next_start() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
__device__ __forceinline__ void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

} // namespace early
