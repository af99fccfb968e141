// Files of a model directory, whose contents nobody vouches for. Every file is opened by one
// function, under a descriptor of the directory: plain names only, regular files only, and a link
// is followed only to a target inside the directory or inside the hub cache's folder of the same
// repository (models--ORG--NAME/snapshots/SHA/file -> ../../blobs/HASH). Nothing here blocks.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

namespace mmengine {

class Descriptor {  // owns a file descriptor; -1: none
 public:
  explicit Descriptor(int fd = -1) noexcept : fd_(fd) {}
  Descriptor(Descriptor&& other) noexcept;
  Descriptor& operator=(Descriptor&& other) noexcept;
  ~Descriptor();
  int get() const noexcept { return fd_; }

 private:
  int fd_;
};

class MappedFile {  // a whole file, read-only, as long as it was when it was mapped
 public:
  // sequential: read once, front to back (weights at load); will_need: start reading it now;
  // done: its pages may leave memory, and come back from the file when read again.
  enum class Advice { sequential, will_need, done };

  MappedFile() = default;
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  ~MappedFile();
  const std::byte* data() const noexcept { return data_; }  // null when empty
  std::uint64_t size() const noexcept { return size_; }
  // Widened to whole pages; advice only, so that a kernel without it changes nothing.
  void advise(std::uint64_t offset, std::uint64_t bytes, Advice advice) const noexcept;

 private:
  friend class Directory;
  MappedFile(const std::byte* data, std::uint64_t size) noexcept : data_(data), size_(size) {}
  const std::byte* data_ = nullptr;
  std::uint64_t size_ = 0;
};

// All take a plain file name. Errors: model_format "path" (not a plain name, leaves the directory,
// not a regular file), model_not_found "missing" or "unreadable".
class Directory {
 public:
  explicit Directory(const std::string& path);
  std::string display() const;                         // PATH, control bytes escaped
  std::string display(const std::string& name) const;  // PATH/NAME, likewise
  std::vector<std::string> names() const;              // of all entries, sorted
  bool has(const std::string& name) const;             // a link counts when its target exists
  std::uint64_t size(const std::string& name) const;   // bytes
  MappedFile map(const std::string& name) const;
  // The whole file; Error{model_format, "too_large"} before anything is read.
  std::string read(const std::string& name, std::uint64_t max_bytes) const;

 private:
  struct OpenFile {
    Descriptor descriptor;
    std::uint64_t bytes = 0;
  };
  OpenFile open_file(const std::string& name) const;
  // The path of `name` below root_ with every link resolved; nothing when there is no such file.
  std::optional<std::filesystem::path> resolve(const std::string& name) const;

  std::string path_;            // as given, for messages
  std::filesystem::path real_;  // the directory without links
  std::filesystem::path root_;  // where targets of links may lie: real_ or the hub's folder
  Descriptor root_fd_;
};

}  // namespace mmengine
