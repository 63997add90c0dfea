/* The kernels in plain C, for any machine. */
#include "base/check.h"
#include "kernels/host/host.h"

/* The vectors are loops here already: more of that would only take minutes to compile. */
#undef UNROLL
#define UNROLL
#define INLINE   static inline
#define KERNELS  td_host_kernels_generic
#define ISA_NAME "generic"

#include "kernels/host/vec_generic.h"

#include "kernels/host/body_table.h"
