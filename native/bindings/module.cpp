#include "bindings.h"

PYBIND11_MODULE(_native, m) {
    m.doc() = "Native parts of persia_hpc: tables, dedup, pooling, codecs, record rings. No I/O, no MPI, no torch.";
    bind_codec(m);
    bind_table(m);
    bind_dedup(m);
    bind_gather(m);
    bind_pool(m);
    bind_ring(m);
}
