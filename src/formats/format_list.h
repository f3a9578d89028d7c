#pragma once

// The cold formats, widest first: X(name, code bits). The one list from which the registry and the kernel
// tables of every instruction set are built; a new width is one line here. Macros only, so that files
// compiled for any instruction set may include it.
// clang-format off
#define MIXED_KV_FOR_EACH_COLD_FORMAT(X) \
    X(q8, 8)                             \
    X(q6, 6)                             \
    X(q5, 5)                             \
    X(q4, 4)                             \
    X(q3, 3)                             \
    X(q2, 2)
// clang-format on
