#pragma once

#include <cstdio>
#include <exception>

// What the programs' main functions share: as many arguments as `usage` names, errors as one line.
template <typename Run>
int run_program(int argc, char** argv, int arguments, const char* usage, const Run& run) {
  if (argc != arguments + 1) {
    std::fprintf(stderr, "usage: %s %s\n", argv[0], usage);
    return 2;
  }
  try {
    run();
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
