#pragma once

#include <ATen/core/dispatch/Dispatcher.h>

#include <algorithm>
#include <utility>

namespace qat {

template <size_t kSize>
struct SchemaName {
  char text[kSize];
  constexpr SchemaName(const char (&name)[kSize]) { std::copy_n(name, kSize, text); }
};

// Calls an operator through torch's dispatcher: call<"qat::pack", decltype(pack)>(codes, bits).
template <SchemaName kName, typename Function, typename... Arguments>
auto call(Arguments&&... arguments) {
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow(kName.text, "").template typed<Function>();
  return op.call(std::forward<Arguments>(arguments)...);
}

}  // namespace qat
