#pragma once

#include <stdexcept>

#include "qat/ops/api.h"

namespace qat {

// What a program catches at its edge: everything that qat/ throws for what it was given, with one
// sentence that says what must hold and what is. Each is a standard exception as well, by which
// parts of a program tell them apart, and Python's bindings too. Operators are torch's and throw
// c10::Error.
class QAT_API Error {
 public:
  virtual ~Error() = default;
  virtual const char* what() const noexcept = 0;

 protected:
  Error() = default;
  Error(const Error&) = default;
  Error& operator=(const Error&) = default;
};

// An Error that is a standard exception: the only std::exception that it is, so that a handler of
// those finds it, too.
template <typename Standard>
class QAT_API ErrorAs : public Standard, public Error {
 public:
  using Standard::Standard;
  const char* what() const noexcept override { return Standard::what(); }
};

// An argument, a recipe's word or a model that a function cannot do what it says with.
using InvalidArgument = ErrorAs<std::invalid_argument>;

// A call that came too early, or too late.
using LogicError = ErrorAs<std::logic_error>;

}  // namespace qat
