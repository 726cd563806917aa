// Instructions that CUDA's language has no words for. F16 as of `attention.cu`.

typedef unsigned short Half;
typedef unsigned int u32;

#define LOWEST __int_as_float(0xff800000)

__device__ __forceinline__ u32 address(const void* shared) {
    return static_cast<u32>(__cvta_generic_to_shared(shared));
}

// Four 8 × 8 matrices, the rows of matrix i at the addresses that lanes 8 i to 8 i + 7 bring.
__device__ __forceinline__ void load(u32 (&to)[4], const Half* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(address(row)) : "memory");
}

__device__ __forceinline__ void load_transposed(u32 (&to)[4], const Half* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(address(row)) : "memory");
}

// sum += a · b, of 16 × 16 and 16 × 8.
__device__ __forceinline__ void multiply(float (&sum)[4], const u32 (&a)[4], u32 b0, u32 b1) {
#if F16
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
#else
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
#endif
                 : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Two values as operands, the first in the lower half.
__device__ __forceinline__ u32 rounded(float low, float high) {
    u32 both;
#if F16
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
#else
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
#endif
    return both;
}

__device__ __forceinline__ float exp2_of(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// 16 or 4 bytes to shared memory, later; zeros where there is nothing.
__device__ __forceinline__ void copy16(void* to, const void* from, bool there) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address(to)), "l"(from), "r"(there ? 16 : 0) : "memory");
}

__device__ __forceinline__ void copy4(void* to, const void* from, bool there) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(address(to)), "l"(from), "r"(there ? 4 : 0) : "memory");
}

__device__ __forceinline__ void commit() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}

// Until what was committed is there, but for the last `OPEN` commits.
template <int OPEN> __device__ __forceinline__ void wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(OPEN) : "memory");
}

