// Opening files of untrusted directories. A link is resolved once, its target is checked, and then
// the target is opened component by component without following anything, so that a link swapped in
// between is refused rather than followed.
#include "base/file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <system_error>
#include <utility>

#include "base/check.h"

namespace mmengine {
namespace {

namespace fs = std::filesystem;

constexpr std::size_t kMaxNameBytes = 255;

std::string system_message(int error) {
  return std::error_code(error, std::generic_category()).message();
}

std::string escaped(const std::string& text) {
  constexpr char kDigits[] = "0123456789abcdef";
  std::string out;
  for (char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte >= 0x20 && byte != 0x7f) {
      out += c;
    } else {
      out += {'\\', 'x', kDigits[byte >> 4], kDigits[byte & 15]};
    }
  }
  return out;
}

[[noreturn]] void refuse_path(const std::string& where, const std::string& message) {
  throw Error(ErrorCode::model_format, where, message, {.reason = "path", .file = where});
}

[[noreturn]] void missing(const std::string& where) {
  throw Error(ErrorCode::model_not_found, where, "no such file",
              {.reason = "missing", .file = where});
}

[[noreturn]] void unreadable(const std::string& where, int error) {
  throw Error(ErrorCode::model_not_found, where,
              str("cannot be read: ", system_message(error), "; check its permissions"),
              {.reason = "unreadable", .file = where});
}

bool starts_with(const fs::path& name, const char* prefix) {
  return name.string().rfind(prefix, 0) == 0;
}

bool is_below(const fs::path& path, const fs::path& root) {
  return std::mismatch(root.begin(), root.end(), path.begin(), path.end()).first == root.end();
}

}  // namespace

Descriptor::Descriptor(Descriptor&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}

Descriptor& Descriptor::operator=(Descriptor&& other) noexcept {
  std::swap(fd_, other.fd_);
  return *this;
}

Descriptor::~Descriptor() {
  if (fd_ >= 0) close(fd_);
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) munmap(const_cast<std::byte*>(data_), size_);
}

void MappedFile::advise(std::uint64_t offset, std::uint64_t bytes, Advice advice) const noexcept {
  if (offset >= size_) return;
  const auto page = static_cast<std::uint64_t>(sysconf(_SC_PAGESIZE));
  const std::uint64_t begin = offset / page * page;
  const std::uint64_t end = offset + std::min(bytes, size_ - offset);
  const int kind = advice == Advice::sequential  ? MADV_SEQUENTIAL
                   : advice == Advice::will_need ? MADV_WILLNEED
                                                 : MADV_DONTNEED;
  madvise(const_cast<std::byte*>(data_) + begin, end - begin, kind);
}

Directory::Directory(const std::string& path) : path_(path) {
  const std::string where = escaped(path);
  std::error_code error;
  if (path.empty() || path.find('\0') != std::string::npos) missing(printable(path));
  real_ = fs::canonical(path, error);
  if (error == std::errc::no_such_file_or_directory || error == std::errc::not_a_directory) {
    throw Error(ErrorCode::model_not_found, where,
                "no such directory, expected a checkpoint directory; check the path",
                {.reason = "missing", .file = where});
  }
  if (error) unreadable(where, error.value());
  if (!fs::is_directory(real_, error)) {
    throw Error(ErrorCode::model_not_found, where,
                "is not a directory, expected a checkpoint directory; a GGUF file becomes one by "
                "mm-run convert",
                {.reason = "not_a_directory", .file = where});
  }
  const fs::path snapshots = real_.parent_path();
  const fs::path repository = snapshots.parent_path();
  const bool in_hub_cache =
      snapshots.filename() == "snapshots" && starts_with(repository.filename(), "models--");
  root_ = in_hub_cache ? repository : real_;
  root_fd_ = Descriptor(::open(root_.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
  if (root_fd_.get() < 0) unreadable(where, errno);
}

std::string Directory::display() const { return escaped(path_); }

std::string Directory::display(const std::string& name) const {
  return escaped((fs::path(path_) / name).string());
}

std::vector<std::string> Directory::names() const {
  std::vector<std::string> names;
  std::error_code error;
  for (fs::directory_iterator it(real_, error), end; !error && it != end; it.increment(error)) {
    names.push_back(it->path().filename().string());
  }
  if (error) unreadable(display(), error.value());
  std::sort(names.begin(), names.end());
  return names;
}

std::optional<fs::path> Directory::resolve(const std::string& name) const {
  if (name.empty() || name == "." || name == ".." || name.size() > kMaxNameBytes ||
      name.find('/') != std::string::npos || name.find('\0') != std::string::npos) {
    refuse_path(display(), str("file name ", printable(name),
                               " is not a plain name, expected a "
                               "name without '/', '..' or NUL, at most 255 bytes"));
  }
  const fs::path file = real_ / name;
  std::error_code error;
  const fs::file_status status = fs::symlink_status(file, error);
  if (status.type() == fs::file_type::not_found) return std::nullopt;
  if (error) unreadable(display(name), error.value());
  fs::path target = file;
  if (status.type() == fs::file_type::symlink) {
    target = fs::canonical(file, error);
    const bool dangling = error == std::errc::no_such_file_or_directory;
    if (dangling) {
      const fs::path next = fs::read_symlink(file, error);
      if (!error) target = fs::weakly_canonical(real_ / next, error);
    }
    if (error) {
      refuse_path(display(name), str("link cannot be followed: ", system_message(error.value())));
    }
    if (!is_below(target, root_)) {
      refuse_path(display(name),
                  "link leaves the checkpoint directory, expected a target inside it; copy the "
                  "file instead");
    }
    if (dangling) return std::nullopt;
  }
  return target.lexically_relative(root_);
}

Directory::OpenFile Directory::open_file(const std::string& name) const {
  const std::optional<fs::path> relative = resolve(name);
  const std::string where = display(name);
  if (!relative) missing(where);
  Descriptor folder;
  int at = root_fd_.get();
  for (const fs::path& part : relative->parent_path()) {
    folder =
        Descriptor(::openat(at, part.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
    if (folder.get() < 0) unreadable(where, errno);
    at = folder.get();
  }
  const fs::path last = relative->filename();
  struct stat info{};
  // Looked at before it is opened: opening alone can act on a device.
  if (::fstatat(at, last.c_str(), &info, AT_SYMLINK_NOFOLLOW) != 0) unreadable(where, errno);
  OpenFile file;
  if (S_ISREG(info.st_mode)) {
    file.descriptor =
        Descriptor(::openat(at, last.c_str(), O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC));
    if (file.descriptor.get() < 0) unreadable(where, errno);
    if (::fstat(file.descriptor.get(), &info) != 0) unreadable(where, errno);
  }
  if (!S_ISREG(info.st_mode)) refuse_path(where, "is not a regular file");
  file.bytes = static_cast<std::uint64_t>(info.st_size);
  return file;
}

bool Directory::has(const std::string& name) const { return resolve(name).has_value(); }

std::uint64_t Directory::size(const std::string& name) const { return open_file(name).bytes; }

MappedFile Directory::map(const std::string& name) const {
  const OpenFile file = open_file(name);
  if (file.bytes == 0) return {};
  void* data = ::mmap(nullptr, file.bytes, PROT_READ, MAP_PRIVATE, file.descriptor.get(), 0);
  if (data == MAP_FAILED) {
    throw Error(
        ErrorCode::resource, display(name), str("cannot be mapped: ", system_message(errno)),
        {.reason = "mmap", .file = display(name), .needed = static_cast<std::int64_t>(file.bytes)});
  }
  return MappedFile(static_cast<const std::byte*>(data), file.bytes);
}

std::string Directory::read(const std::string& name, std::uint64_t max_bytes) const {
  const OpenFile file = open_file(name);
  const std::string where = display(name);
  if (file.bytes > max_bytes) {
    throw Error(ErrorCode::model_format, where,
                str("expected at most ", max_bytes, " bytes, got ", file.bytes),
                {.reason = "too_large", .file = where});
  }
  std::string text(file.bytes, '\0');
  std::size_t done = 0;
  while (done < text.size()) {
    const ssize_t got = ::pread(file.descriptor.get(), text.data() + done, text.size() - done,
                                static_cast<off_t>(done));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) unreadable(where, errno);
    if (got == 0) break;  // shortened since it was opened: what is there decides
    done += static_cast<std::size_t>(got);
  }
  text.resize(done);
  return text;
}

}  // namespace mmengine
