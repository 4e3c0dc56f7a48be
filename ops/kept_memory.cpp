#include "qat/ops/kept_memory.h"

#include <ATen/EmptyTensor.h>
#include <ATen/ops/empty.h>
#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <torch/library.h>

#include <algorithm>
#include <cstdlib>
#include <map>
#include <mutex>
#include <unordered_map>

#ifdef __GLIBC__
#include <malloc.h>
#endif
#ifdef __linux__
#include <sys/mman.h>
#endif

namespace qat {
namespace {

constexpr size_t kSmallPage = size_t{4} << 10;
constexpr size_t kHugePage = size_t{2} << 20;
// Smaller results come from the heap, which keeps them by itself.
constexpr size_t kSmallest = size_t{64} << 10;

// How many times larger than what it holds a buffer may be.
constexpr size_t most_waste(Fit fit) { return fit == Fit::brief ? 8 : 1; }

template <Fit kFit>
class KeptMemory final : public c10::Allocator {
 public:
  // Never destroyed: tensors may outlive every static object.
  static KeptMemory& instance() {
    static auto* memory = new KeptMemory;
    return *memory;
  }

  c10::DataPtr allocate(size_t bytes) override {
    if (bytes == 0) return {nullptr, nullptr, &deleter, c10::DeviceType::CPU};
    void* data = take(bytes);
    return {data, data, &deleter, c10::DeviceType::CPU};
  }

  c10::DeleterFnPtr raw_deleter() const override { return &deleter; }

  void copy_data(void* to, const void* from, size_t bytes) const override {
    default_copy_data(to, from, bytes);
  }

  int64_t bytes() const {
    const std::lock_guard lock(mutex_);
    return bytes_;
  }

  int64_t most_bytes() const {
    const std::lock_guard lock(mutex_);
    return most_bytes_;
  }

  void release() {
    const std::lock_guard lock(mutex_);
    while (!free_.empty()) drop(free_.begin());
    most_bytes_ = bytes_;
  }

  void release_all_but_the_largest() {
    const std::lock_guard lock(mutex_);
    while (free_.size() > 1) drop(free_.begin());
  }

 private:
  using FreeList = std::multimap<size_t, void*>;

  static void deleter(void* data) {
    if (data) instance().give_back(data);
  }

  // The smallest free buffer that is large enough, but not too large. When all are too small, the
  // largest makes room for a new one: a model whose layers grow ends with one buffer, not with one
  // a size.
  void* take(size_t bytes) {
    const std::lock_guard lock(mutex_);
    const auto found = free_.lower_bound(bytes);
    if (found == free_.end()) {
      if (!free_.empty()) drop(std::prev(free_.end()));
      return make(bytes);
    }
    if (found->first > most_waste(kFit) * rounded(bytes)) return make(bytes);
    void* buffer = found->second;
    used_.emplace(buffer, found->first);
    free_.erase(found);
    return buffer;
  }

  void give_back(void* buffer) {
    const std::lock_guard lock(mutex_);
    const auto found = used_.find(buffer);
    free_.emplace(found->second, buffer);
    used_.erase(found);
  }

  static size_t page_of(size_t bytes) { return bytes >= kHugePage ? kHugePage : kSmallPage; }
  static size_t rounded(size_t bytes) {
    const size_t page = page_of(bytes);
    return (bytes + page - 1) / page * page;
  }

  void* make(size_t bytes) {
    const size_t page = page_of(bytes), size = rounded(bytes);
    void* buffer = std::aligned_alloc(page, size);
    TORCH_CHECK_WITH(OutOfMemoryError, buffer, "[torchqat] there is no memory for ", bytes,
                     " bytes of quantized values; lower the batch size or the sequence length.");
#ifdef __linux__
    if (page == kHugePage) madvise(buffer, size, MADV_HUGEPAGE);
#endif
    used_.emplace(buffer, size);
    bytes_ += static_cast<int64_t>(size);
    most_bytes_ = std::max(most_bytes_, bytes_);
    return buffer;
  }

  void drop(FreeList::iterator at) {
    bytes_ -= static_cast<int64_t>(at->first);
    std::free(at->second);
    free_.erase(at);
  }

  mutable std::mutex mutex_;
  FreeList free_;                           // by size
  std::unordered_map<void*, size_t> used_;  // sizes
  int64_t bytes_ = 0;
  int64_t most_bytes_ = 0;
};

KeptMemory<Fit::brief>& brief() { return KeptMemory<Fit::brief>::instance(); }
KeptMemory<Fit::tight>& tight() { return KeptMemory<Fit::tight>::instance(); }

}  // namespace

at::Tensor kept_empty(at::IntArrayRef sizes, const at::TensorOptions& options, Fit fit) {
  const auto dtype = c10::typeMetaToScalarType(options.dtype());
  const size_t bytes = at::detail::computeStorageNbytesContiguous(sizes, c10::elementSize(dtype));
  if (!options.device().is_cpu() || bytes < kSmallest) return at::empty(sizes, options);
  c10::Allocator* memory = fit == Fit::brief ? static_cast<c10::Allocator*>(&brief()) : &tight();
  return at::Tensor(at::detail::empty_generic(
      sizes, memory, c10::DispatchKeySet(c10::DispatchKey::CPU), dtype, std::nullopt));
}

at::Tensor kept_empty_symint(c10::SymIntArrayRef sizes, const at::TensorOptions& options, Fit fit) {
  const auto known = c10::asIntArrayRefSlowOpt(sizes);
  return known ? kept_empty(*known, options, fit) : at::empty_symint(sizes, options);
}

at::Tensor kept_empty_like(const at::Tensor& like, at::ScalarType dtype) {
  return kept_empty_symint(like.sym_sizes(), like.options().dtype(dtype));
}

int64_t kept_bytes() { return brief().bytes() + tight().bytes(); }
int64_t most_kept_bytes() { return brief().most_bytes() + tight().most_bytes(); }
void release_kept_memory() {
  brief().release();
  tight().release();
#ifdef __GLIBC__
  ::malloc_trim(0);  // what others gave back, and the allocator holds for the next to ask
#endif
}

void release_all_but_the_largest() { brief().release_all_but_the_largest(); }

TORCH_LIBRARY_FRAGMENT(qat, m) {
  m.def("release_all_but_the_largest() -> ()", &release_all_but_the_largest);
  m.def("kept_bytes() -> int", &kept_bytes);
  m.def("most_kept_bytes() -> int", &most_kept_bytes);
  m.def("release_kept_memory() -> ()", &release_kept_memory);
}

}  // namespace qat
