#include "bindings.h"

#ifdef __GLIBC__
#include <malloc.h>
#endif

namespace {

// malloc maps large blocks afresh each time, and touching a new page costs several times as much as copying
// it: so a process that allocates the same large arrays in each step keeps what it frees. An older glibc
// refuses the first threshold. Elsewhere this does nothing.
void keep_freed_memory() {
#ifdef __GLIBC__
    if (mallopt(M_MMAP_THRESHOLD, 1 << 30) == 0) mallopt(M_MMAP_THRESHOLD, 32 << 20);
    mallopt(M_TRIM_THRESHOLD, 2147483647);
#endif
}

}  // namespace

PYBIND11_MODULE(_native, m) {
    m.doc() =
        R"(Native parts of persia_hpc: tables, dedup, pooling, dense layers, codecs, metrics, rings.

Arrays are NumPy arrays, C-contiguous, and used in place: what is no array, or one of another dtype, shape
or layout, raises a ValueError that names the argument, what was expected and got. No MPI or torch, and no
I/O but that of a table's disk tier; no call is collective.)";
    bind_codec(m);
    bind_criteo_lines(m);
    bind_table_config(m);
    bind_table(m);
    bind_table_set(m);
    bind_shares(m);
    bind_served(m);
    bind_dedup(m);
    bind_recent_rows(m);
    bind_gather(m);
    bind_id_counter(m);
    bind_node_sum(m);
    bind_pool(m);
    bind_pool_batch(m);
    bind_limits(m);
    bind_dlrm(m);
    bind_silu_attention(m);
    bind_ranking(m);
    m.def("keep_freed_memory", &keep_freed_memory,
          "Makes this process keep large blocks that it frees, for the next step; irrevocable, glibc only.");
    bind_ring(m);
}
