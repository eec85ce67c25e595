/* Sums the time of every kernel of a process, and writes a table to PROFILE_FILE at its end. CUDA_INJECTION64_PATH
 * loads it.
 *
 *     cc -O2 -shared -fPIC -I CUDA/include -o profile.so profile.c -L CUDA/lib -lcupti
 *
 * Only the last PROFILE_LAST percent of the process's kernels count (default: 40), to exclude loading and warming
 * up. */
#include <cupti.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))
#define BUFFER (8u << 20)
#define MAX_EVENTS (1u << 22)
#define MAX_NAMES 4096

struct event {
    uint64_t start, end, bytes;
    const char *name;
};
static struct event *events;
static size_t count;

/* A copy of the name: CUPTI's is valid only as long as the module is loaded. */
static const char *interned(const char *name)
{
    static const char *names[MAX_NAMES];
    static size_t known;
    for (size_t i = 0; i < known; i++)
        if (!strcmp(names[i], name))
            return names[i];
    if (known == MAX_NAMES)
        return "others";
    return names[known++] = strdup(name);
}

static void add(const char *name, uint64_t start, uint64_t end, uint64_t bytes)
{
    if (count < MAX_EVENTS)
        events[count++] = (struct event){start, end, bytes, interned(name)};
}

static void CUPTIAPI requested(uint8_t **buffer, size_t *size, size_t *max_records)
{
    *size = BUFFER;
    *buffer = aligned_alloc(8, BUFFER);
    *max_records = 0;
}

static void CUPTIAPI completed(CUcontext context, uint32_t stream, uint8_t *buffer, size_t size, size_t valid)
{
    (void)context, (void)stream, (void)size;
    CUpti_Activity *record = NULL;
    while (cuptiActivityGetNextRecord(buffer, valid, &record) == CUPTI_SUCCESS) {
        if (record->kind == CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL) {
            CUpti_ActivityKernel10 *kernel = (CUpti_ActivityKernel10 *)record;
            add(kernel->name, kernel->start, kernel->end, 0);
        } else if (record->kind == CUPTI_ACTIVITY_KIND_MEMCPY) {
            CUpti_ActivityMemcpy6 *copy = (CUpti_ActivityMemcpy6 *)record;
            const char *name = copy->copyKind == CUPTI_ACTIVITY_MEMCPY_KIND_HTOD   ? "[copy to the device]"
                               : copy->copyKind == CUPTI_ACTIVITY_MEMCPY_KIND_DTOH ? "[copy from the device]"
                                                                                   : "[copy on the device]";
            add(name, copy->start, copy->end, copy->bytes);
        } else if (record->kind == CUPTI_ACTIVITY_KIND_MEMSET) {
            CUpti_ActivityMemset4 *set = (CUpti_ActivityMemset4 *)record;
            add("[set]", set->start, set->end, set->bytes);
        }
    }
    free(buffer);
}

static int by_start(const void *one, const void *other)
{
    uint64_t a = ((const struct event *)one)->start, b = ((const struct event *)other)->start;
    return (a > b) - (a < b);
}

struct sum {
    const char *name;
    uint64_t time, calls, longest, bytes;
};

static int by_time(const void *one, const void *other)
{
    uint64_t a = ((const struct sum *)one)->time, b = ((const struct sum *)other)->time;
    return (a < b) - (a > b);
}

static void report(void)
{
    static struct sum sums[MAX_NAMES + 1];
    size_t known = 0;
    cuptiActivityFlushAll(CUPTI_ACTIVITY_FLAG_FLUSH_FORCED);
    const char *file = getenv("PROFILE_FILE"), *last = getenv("PROFILE_LAST");
    FILE *out = file ? fopen(file, "w") : stderr;
    if (!out || !count)
        return;
    qsort(events, count, sizeof *events, by_start);
    size_t first = count - count * (last ? strtoul(last, NULL, 10) : 40) / 100;
    uint64_t busy = 0, end = 0;
    for (size_t i = first; i < count; i++) {
        struct event *e = &events[i];
        size_t at = 0;
        while (at < known && sums[at].name != e->name)
            at++;
        if (at == known)
            sums[known++].name = e->name;
        uint64_t time = e->end - e->start;
        sums[at].time += time;
        sums[at].calls++;
        sums[at].bytes += e->bytes;
        if (time > sums[at].longest)
            sums[at].longest = time;
        /* busy time: the union of the intervals, as kernels may overlap */
        uint64_t from = e->start > end ? e->start : end;
        if (e->end > from)
            busy += e->end - from;
        if (e->end > end)
            end = e->end;
    }
    double span = (end - events[first].start) / 1e6;
    fprintf(out, "%zu of %zu kernels and copies, over %.2f ms, of which the device was busy for %.2f ms (%.0f %%)\n",
            count - first, count, span, busy / 1e6, 100 * busy / 1e6 / span);
    fprintf(out, "%10s %7s %8s %10s %10s  %s\n", "ms", "%", "calls", "us mean", "us max", "kernel");
    qsort(sums, known, sizeof *sums, by_time);
    for (size_t i = 0; i < known; i++)
        fprintf(out, "%10.3f %7.2f %8lu %10.2f %10.2f  %.160s\n", sums[i].time / 1e6, 100.0 * sums[i].time / busy,
                (unsigned long)sums[i].calls, sums[i].time / 1e3 / sums[i].calls, sums[i].longest / 1e3, sums[i].name);
    fclose(out);
}

/* called by the driver when it starts */
EXPORT int InitializeInjection(void)
{
    events = malloc(MAX_EVENTS * sizeof *events);
    if (!events || cuptiActivityRegisterCallbacks(requested, completed) != CUPTI_SUCCESS)
        return 0;
    CUptiResult enabled = cuptiActivityEnable(CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL);
    cuptiActivityEnable(CUPTI_ACTIVITY_KIND_MEMCPY);
    cuptiActivityEnable(CUPTI_ACTIVITY_KIND_MEMSET);
    if (enabled != CUPTI_SUCCESS) {
        const char *reason = "";
        cuptiGetResultString(enabled, &reason);
        fprintf(stderr, "profile: kernels cannot be recorded: %s\n", reason);
    }
    atexit(report);
    return 1;
}
