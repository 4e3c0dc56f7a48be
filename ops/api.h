#pragma once

// Before what a library shows to programs and to other libraries: a free function, a class with
// functions that are not inline, an exception. All else of libqat_ops and libqat is hidden.
#define QAT_API __attribute__((visibility("default")))
