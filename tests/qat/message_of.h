#pragma once

#include <exception>
#include <functional>
#include <string>

namespace qat {

// What the body throws says; empty where it throws nothing.
inline std::string message_of(const std::function<void()>& body) {
  try {
    body();
  } catch (const std::exception& error) {
    return error.what();
  }
  return "";
}

}  // namespace qat
