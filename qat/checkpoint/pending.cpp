#include "qat/checkpoint/pending.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <system_error>

#include "qat/checkpoint/safetensors.h"

namespace qat::detail {
namespace {

namespace fs = std::filesystem;

[[noreturn]] void could_not_write(const fs::path& path, int error) {
  throw FileError(path.string() + " could not be written: " + std::strerror(error) + ".");
}

std::string suffix(const char* what) { return what + std::to_string(::getpid()); }

// That the names in it reach the disk; a file system that has no such thing says so, and is let be.
void sync_folder(const fs::path& path) {
  const int folder = ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (folder < 0) return;
  ::fsync(folder);
  ::close(folder);
}

}  // namespace

PendingFile::PendingFile(fs::path path)
    : path_(std::move(path)), pending_(path_.string() + suffix(".pending-")) {
  // What an earlier process of this number left, or anyone's link, goes: only a new file is opened.
  ::unlink(pending_.c_str());
  descriptor_ =
      ::open(pending_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0644);
  if (descriptor_ < 0) fail();
}

PendingFile::~PendingFile() {
  if (descriptor_ >= 0) ::close(descriptor_);
  if (!pending_.empty()) ::unlink(pending_.c_str());
}

void PendingFile::write(const void* data, size_t size) {
  const char* at = static_cast<const char*>(data);
  while (size > 0) {
    const ssize_t written = ::write(descriptor_, at, size);
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) fail();
    at += written;
    size -= static_cast<size_t>(written);
  }
}

void PendingFile::commit() {
  if (::fsync(descriptor_) != 0) fail();
  const int closed = ::close(descriptor_);
  descriptor_ = -1;
  if (closed != 0 || std::rename(pending_.c_str(), path_.c_str()) != 0) fail();
  pending_.clear();
}

void PendingFile::fail() const { could_not_write(path_, errno); }

PendingFolder::PendingFolder(const fs::path& path) : shown_(path) {
  std::error_code error;
  // A relative path of which nothing is there stays relative, and then has no parent.
  path_ = fs::weakly_canonical(fs::absolute(path), error);
  if (error) fail(error.value());
  if (!path_.has_filename()) path_ = path_.parent_path();  // "out/"
  if (fs::exists(path_, error) && !fs::is_directory(path_, error)) fail(ENOTDIR);
  if (path_ == fs::current_path(error))
    throw FileError(shown_.string() +
                    " must not be the folder that the program runs in, because it is replaced, "
                    "but is.");
  fs::create_directories(path_.parent_path(), error);
  if (error) fail(error.value());
  pending_ = path_.parent_path() / ("." + path_.filename().string() + suffix(".pending-"));
  fs::remove_all(pending_, error);
  if (::mkdir(pending_.c_str(), 0777) != 0) fail(errno);
}

PendingFolder::~PendingFolder() {
  std::error_code ignored;
  fs::remove_all(pending_, ignored);
}

void PendingFolder::commit() {
  sync_folder(pending_);
  take_place();
  sync_folder(path_.parent_path());
}

// What was there then has the name of what was pending, and is removed with it.
void PendingFolder::take_place() {
  const auto move = [this](const fs::path& from, const fs::path& to) {
    if (std::rename(from.c_str(), to.c_str()) != 0) fail(errno);
  };
  std::error_code unknown;
  if (!fs::exists(path_, unknown)) return move(pending_, path_);
#ifdef RENAME_EXCHANGE
  if (::renameat2(AT_FDCWD, pending_.c_str(), AT_FDCWD, path_.c_str(), RENAME_EXCHANGE) == 0)
    return;
  if (errno != ENOSYS && errno != EINVAL) fail(errno);
#endif
  // Where two names cannot be exchanged, the old folder is away for a moment, but whole.
  const fs::path old = pending_.string() + ".old";
  move(path_, old);
  if (std::rename(pending_.c_str(), path_.c_str()) != 0) {
    const int error = errno;
    move(old, path_);
    fail(error);
  }
  pending_ = old;
}

void PendingFolder::fail(int error) const { could_not_write(shown_, error); }

}  // namespace qat::detail
