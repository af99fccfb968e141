// Fiber: a function on a stack of its own that gives way when it likes and is resumed later, always
// by the same thread. Used again for one function after another; a switch costs some nanoseconds.
#pragma once

#include <ucontext.h>

#include <csetjmp>
#include <cstddef>
#include <exception>
#include <functional>

namespace mmengine::emulator {

class Fiber {
 public:
  Fiber();
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // `body` is borrowed; it begins with the next resume.
  void start(const std::function<void()>& body);
  // Runs until the body gives way or ends; throws what it threw. The fiber must not have finished.
  void resume();
  void give_way();  // called by the body
  bool finished() const { return finished_; }

 private:
  static void enter(unsigned low, unsigned high);
  void run();
  void leave();

  static constexpr std::size_t kStackBytes = std::size_t{64} << 10;
  void* stack_ = nullptr;
  ucontext_t context_{};
  std::jmp_buf own_{}, caller_{};
  const std::function<void()>* body_ = nullptr;
  std::exception_ptr error_;
  bool entered_ = false, finished_ = true;
};

}  // namespace mmengine::emulator
