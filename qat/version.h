#pragma once

// What checkpoints say of who wrote them.
#define QAT_VERSION "0.1.0"
