#pragma once

#include <cstddef>
#include <filesystem>
#include <string>

namespace qat::detail {

// A file that appears under its name only when it is complete: written beside it, flushed to the
// disk and renamed. Throws FileError, naming the file, when the disk is full or the folder cannot
// be written; what was there before then stays, and nothing else.
class PendingFile {
 public:
  explicit PendingFile(std::filesystem::path path);
  ~PendingFile();
  PendingFile(const PendingFile&) = delete;
  PendingFile& operator=(const PendingFile&) = delete;

  void write(const void* data, size_t size);
  void commit();

 private:
  [[noreturn]] void fail() const;

  std::filesystem::path path_, pending_;
  int descriptor_ = -1;
};

// A folder likewise, which takes the place of the one that is there in one step: a process that is
// killed leaves the old one or the new one, whole.
class PendingFolder {
 public:
  explicit PendingFolder(const std::filesystem::path& path);
  ~PendingFolder();
  PendingFolder(const PendingFolder&) = delete;
  PendingFolder& operator=(const PendingFolder&) = delete;

  // Where it will be, without links on the way, and where it is written.
  const std::filesystem::path& path() const { return path_; }
  const std::filesystem::path& pending() const { return pending_; }
  void commit();

 private:
  [[noreturn]] void fail(int error) const;
  void take_place();

  std::filesystem::path shown_, path_, pending_;
};

}  // namespace qat::detail
