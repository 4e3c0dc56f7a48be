#pragma once

#include <ATen/record_function.h>

#include <set>
#include <string>

namespace qat {

// While it lives, counts the operators of this thread that read a tensor's elements on the host,
// for which a GPU would have to come to its end.
class HostReads {
 public:
  HostReads() {
    count_of_thread() = 0;
    handle_ = at::addThreadLocalCallback(
        at::RecordFunctionCallback(&HostReads::hear).scopes({at::RecordScope::FUNCTION}));
  }
  ~HostReads() { at::removeCallback(handle_); }
  HostReads(const HostReads&) = delete;
  HostReads& operator=(const HostReads&) = delete;

  int count() const { return count_of_thread(); }

 private:
  static int& count_of_thread() {
    static thread_local int count = 0;
    return count;
  }
  static std::unique_ptr<at::ObserverContext> hear(const at::RecordFunction& call) {
    static const std::set<std::string> kReads{"aten::item",         "aten::_local_scalar_dense",
                                              "aten::is_nonzero",   "aten::equal",
                                              "aten::allclose",     "aten::nonzero",
                                              "aten::masked_select"};
    if (kReads.count(call.name()) > 0) ++count_of_thread();
    return nullptr;
  }
  at::CallbackHandle handle_;
};

}  // namespace qat
