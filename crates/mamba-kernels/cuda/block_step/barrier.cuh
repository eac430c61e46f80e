// Barriers in shared memory that count arrivals and bytes, also of what other blocks of a cluster send. From Hopper on.
#pragma once
#include <cstdint>

namespace step {

__device__ __forceinline__ unsigned address(const void *shared) { return (unsigned)__cvta_generic_to_shared(shared); }
__device__ __forceinline__ void barrier_init(uint64_t *barrier, int arrivals) { asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(address(barrier)), "r"(arrivals) : "memory"); }
__device__ __forceinline__ void barrier_expect(uint64_t *barrier, int bytes) { asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(address(barrier)), "r"(bytes) : "memory"); }
__device__ __forceinline__ void barrier_arrive(uint64_t *barrier) { asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(address(barrier)) : "memory"); }
__device__ __forceinline__ void barrier_wait(uint64_t *barrier, unsigned parity) {
    asm volatile("{ .reg .pred done; again: mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
                 "@!done bra again; }" ::"r"(address(barrier)), "r"(parity) : "memory");
}
// The same where other blocks wrote what is waited for.
__device__ __forceinline__ void barrier_wait_for_cluster(uint64_t *barrier, unsigned parity) {
    asm volatile("{ .reg .pred done; again: mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%0], %1;\n"
                 "@!done bra again; }" ::"r"(address(barrier)), "r"(parity) : "memory");
}
// Into the shared memory of the cluster's block `rank`, at the place that `to` has in this block's; its barrier counts the bytes.
__device__ __forceinline__ void send(unsigned rank, const float *to, float4 x, uint64_t *barrier) {
    asm volatile("{ .reg .b32 to, barrier; mapa.shared::cluster.u32 to, %0, %1; mapa.shared::cluster.u32 barrier, %2, %1;\n"
                 "st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [to], {%3, %4, %5, %6}, [barrier]; }" ::"r"(address(to)), "r"(rank), "r"(address(barrier)), "r"(__float_as_uint(x.x)), "r"(__float_as_uint(x.y)), "r"(__float_as_uint(x.z)), "r"(__float_as_uint(x.w)) : "memory");
}
__device__ __forceinline__ void send(unsigned rank, const float *to, float x, uint64_t *barrier) {
    asm volatile("{ .reg .b32 to, barrier; mapa.shared::cluster.u32 to, %0, %1; mapa.shared::cluster.u32 barrier, %2, %1;\n"
                 "st.async.shared::cluster.mbarrier::complete_tx::bytes.b32 [to], %3, [barrier]; }" ::"r"(address(to)), "r"(rank), "r"(address(barrier)), "r"(__float_as_uint(x)) : "memory");
}

} // namespace step
