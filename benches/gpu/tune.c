/* Measures the effect of possible changes on a program that is already built; use it with LD_PRELOAD.
 *
 *     cc -O2 -shared -fPIC -o tune.so tune.c -ldl
 *
 * KEEP_MEMORY=1  the process keeps freed memory: otherwise the driver takes it back at every synchronisation, and
 *                maps it again
 * NO_EVENTS=1    no events are created: otherwise every tensor has two; they are needed only with several streams
 * USE_TF32=1     f32 matrix products round their inputs to 10 bits of significand (TF32), for the tensor cores */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

static int is_on(const char *name)
{
    const char *value = getenv(name);
    return value && *value == '1';
}

int cuDevicePrimaryCtxRetain(void **context, int device)
{
    int (*retain)(void **, int) = dlsym(RTLD_NEXT, "cuDevicePrimaryCtxRetain");
    int (*get_pool)(void **, int) = dlsym(RTLD_NEXT, "cuDeviceGetDefaultMemPool");
    int (*set)(void *, int, void *) = dlsym(RTLD_NEXT, "cuMemPoolSetAttribute");
    int result = retain(context, device);
    if (result == 0 && is_on("KEEP_MEMORY")) {
        void *pool = NULL;
        uint64_t everything = UINT64_MAX;
        int failed = get_pool(&pool, device);
        /* CU_MEMPOOL_ATTR_RELEASE_THRESHOLD */
        failed = failed ? failed : set(pool, 4, &everything);
        fprintf(stderr, "KEEP_MEMORY: %d\n", failed);
    }
    return result;
}

static char no_event;

static int makes_no_events(void)
{
    static int none = -1;
    if (none < 0)
        none = is_on("NO_EVENTS");
    return none;
}

int cuEventCreate(void **event, unsigned flags)
{
    static int (*create)(void **, unsigned);
    if (makes_no_events()) {
        *event = &no_event;
        return 0;
    }
    if (!create)
        create = dlsym(RTLD_NEXT, "cuEventCreate");
    return create(event, flags);
}

int cuEventDestroy_v2(void *event)
{
    static int (*destroy)(void *);
    if (event == &no_event)
        return 0;
    if (!destroy)
        destroy = dlsym(RTLD_NEXT, "cuEventDestroy_v2");
    return destroy(event);
}

int cublasGemmStridedBatchedEx(void *handle, int transa, int transb, int m, int n, int k, const void *alpha,
                               const void *a, int atype, int lda, long long stridea, const void *b, int btype,
                               int ldb, long long strideb, const void *beta, void *c, int ctype, int ldc,
                               long long stridec, int count, int compute, int algorithm)
{
    static int (*product)(void *, int, int, int, int, int, const void *, const void *, int, int, long long,
                          const void *, int, int, long long, const void *, void *, int, int, long long, int, int, int);
    static int use_tf32 = -1;
    if (use_tf32 < 0) {
        product = dlsym(RTLD_NEXT, "cublasGemmStridedBatchedEx");
        use_tf32 = is_on("USE_TF32");
        if (use_tf32)
            fprintf(stderr, "USE_TF32\n");
    }
    /* CUDA_R_32F; CUBLAS_COMPUTE_32F to CUBLAS_COMPUTE_32F_FAST_TF32 */
    if (use_tf32 && atype == 0 && compute == 68)
        compute = 77;
    return product(handle, transa, transb, m, n, k, alpha, a, atype, lda, stridea, b, btype, ldb, strideb, beta, c,
                   ctype, ldc, stridec, count, compute, algorithm);
}
